"""The Gluon kernel: on a GPU as it is, elsewhere its Python over the CPU's stand-ins.

The tolerances are a device's in both cases: the weights are rounded to bfloat16.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton._C.libtriton import gluon_ir, ir
from triton.compiler.compiler import make_backend
from triton.experimental.gluon import language as gl

from kernels.cache import LatentCache, latent_rows
from kernels.hopper import sparse_mla_gather, sparse_mla_gluon
from kernels.hopper.sparse_mla import sparse_mla
from kernels.hopper.specialisation import HOPPER
from kernels.sparse_mla import sparse_mla_reference
from tests.kernels.hopper.gluon_emulation import Barrier, Emulated
from tests.kernels.hopper.latent_rows import randn
from tests.kernels.hopper.test_versions import KNOWN, ROOT, environment

LATENT, ROPE = sparse_mla_gluon.LATENT, sparse_mla_gluon.ROPE
SCALE = (LATENT + ROPE) ** -0.55
SLOTS = 400
MODULES = (sparse_mla_gather, sparse_mla_gluon)
COMPILED = sparse_mla_gluon.sparse_mla_gluon_kernel


@pytest.fixture
def run(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(q, cache, slots, seed=..., **options): the launcher, with its kernel or the stand-in."""

    def launched(q: Tensor, cache: Tensor, slots: Tensor, seed: int = 0, **options: Any) -> Any:
        if device.type != "cuda":
            kernel = Emulated(COMPILED, MODULES, seed)
            monkeypatch.setattr(sparse_mla_gluon, "sparse_mla_gluon_kernel", kernel)
            monkeypatch.setattr(sparse_mla_gluon, "missing", lambda: None)
        inputs = [x.to(device) for x in (q, cache, slots)]
        return sparse_mla(*inputs, SCALE, latent=LATENT, kernel="gluon", **options)

    return launched


def filled_cache(used: Tensor) -> tuple[Tensor, Tensor]:
    """A cache [SLOTS, 656] with random rows at the slots `used` and NaN in all others, and its
    rows as float64 [SLOTS, C + R]."""
    cache = LatentCache(
        1, SLOTS, latent=LATENT, rope=ROPE, dtype="fp8", compute_dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    cache.rows.fill_(0xFF)
    # A scale of its own for each group of each row: one taken from elsewhere shows.
    sizes = 2.0 ** torch.randint(-6, 5, (len(used), LATENT // 128), generator=torch.Generator())
    latents = randn(len(used), LATENT, seed=1) * sizes.repeat_interleave(128, 1)
    cache.write(0, used, latents, randn(len(used), ROPE, seed=2))
    return cache.rows[0], latent_rows(
        cache.rows[0], torch.arange(SLOTS), LATENT, ROPE, torch.float64
    )


def lists(tokens: int, entries: int) -> Tensor:
    """Slot lists with -1 anywhere, a first one without any entry; none has slot 0."""
    generator = torch.Generator().manual_seed(3)
    slots = torch.randint(1, SLOTS, (tokens, entries), generator=generator, dtype=torch.int32)
    slots[torch.rand(tokens, entries, generator=generator) < 0.3] = -1
    slots[0] = -1
    return slots


def expected(q: Tensor, rows: Tensor, slots: Tensor, heads: list[int]) -> tuple[Tensor, Tensor]:
    return sparse_mla_reference(q[:, heads].double(), rows, slots.tolist(), SCALE, latent=LATENT)


def assert_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    out, lse = (x.double().cpu() for x in found)
    largest = float(wanted[0].abs().max())
    torch.testing.assert_close(out, wanted[0], atol=largest * 4e-3, rtol=2**-7)
    torch.testing.assert_close(lse, wanted[1], atol=1e-4, rtol=1e-5)


def some_heads(count: int) -> list[int]:
    return [0, 1, 17, 63, *([64, 127] if count == 128 else [])]


@pytest.mark.parametrize(
    ("heads", "entries", "splits", "seed"),
    [
        (64, 1, 1, 0),
        (64, 64, 1, 1),
        (64, 65, 1, 2),
        (128, 129, 1, 3),
        (64, 330, 1, 4),
        (64, 330, 2, 5),
        (128, 257, 2, 6),
    ],
)
def test_matches_the_reference(run: Any, heads: int, entries: int, splits: int, seed: int) -> None:
    q, slots = randn(2, heads, LATENT + ROPE, seed=4), lists(2, entries)
    cache, rows = filled_cache(slots[slots >= 0].unique().long())
    found = run(q, cache, slots, seed, splits=splits, out_dtype=torch.float32)
    some = some_heads(heads)
    assert_close([x[:, some] for x in found], expected(q, rows, slots, some))
    assert found[0][0].eq(0).all() and found[1][0].eq(-torch.inf).all()


def test_parts_without_entries_and_strided_inputs(run: Any) -> None:
    slots = lists(3, 260)
    slots[1, :128] = -1
    slots[2, 1:] = -1
    wide = torch.full((3, 300), 5, dtype=torch.int64)
    wide[:, 7:267] = slots
    q = randn(64, 3, LATENT + ROPE + 8, seed=5).transpose(0, 1)[..., 8:]
    cache, rows = filled_cache(slots[slots >= 0].unique().long())
    found = run(q, cache, wide[:, 7:267], 7, splits=2)
    assert found[0].dtype == torch.bfloat16
    assert_close([x[:, [0, 63]] for x in found], expected(q, rows, slots, [0, 63]))


def test_batch_invariant_rows_depend_on_themselves_alone(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.hopper.sparse_mla.INVARIANT_SPLIT_ENTRIES", 128)
    q, slots = randn(2, 64, LATENT + ROPE, seed=8), lists(3, 200)[1:]
    padded = torch.cat((slots, torch.full((2, 60), -1, dtype=torch.int32)), 1)
    cache, _ = filled_cache(slots[slots >= 0].unique().long())
    together = run(q, cache, padded, batch_invariant=True)
    for t in range(2):
        alone = run(q[t : t + 1], cache, slots[t : t + 1], 9, batch_invariant=True)
        assert torch.equal(alone[0][0], together[0][t]) and torch.equal(alone[1][0], together[1][t])


def test_the_order_of_the_partitions_changes_no_bit(run: Any) -> None:
    q, slots = randn(1, 64, LATENT + ROPE, seed=10), lists(2, 200)[1:]
    cache, _ = filled_cache(slots[slots >= 0].unique().long())
    first = run(q, cache, slots, splits=1)
    for seed in range(1, 20):
        again = run(q, cache, slots, seed, splits=1)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]), seed


def test_slots_past_two_gibibytes(run: Any) -> None:
    last = 2**31 // 656 + 5
    cache = torch.empty(last + 1, 656, dtype=torch.uint8)  # never touched
    few, rows = filled_cache(torch.tensor([1, 2]))
    cache[last - 1 :] = few[1:3]
    q = randn(1, 64, LATENT + ROPE, seed=9)
    found = run(q, cache, torch.tensor([[last, -1, last - 1]]))
    wanted = expected(q, rows, torch.tensor([[2, 1]]), [0, 63])
    assert_close([x[:, [0, 63]] for x in found], wanted)


@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_to_do(run: Any, rows: int) -> None:
    cache, _ = filled_cache(torch.tensor([1]))
    q = randn(rows, 64, LATENT + ROPE, seed=11)
    out, lse = run(q, cache, torch.empty(rows, 0, dtype=torch.int64))
    assert out.shape == (rows, 64, LATENT) and out.eq(0).all() and lse.eq(-torch.inf).all()


interpreted = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="of the stand-ins that run where Gluon does not"
)


@interpreted
@pytest.mark.parametrize(("right", "wrong"), [(2, 1), (2, 3), (1, 2)])
def test_the_stand_ins_notice_a_wrong_protocol(
    run: Any, monkeypatch: pytest.MonkeyPatch, right: int, wrong: int
) -> None:
    """Where barriers count otherwise, a tile is overwritten too early or nobody can go on."""

    def initialise(barrier: Barrier, count: int) -> None:
        barrier.count = barrier.missing = wrong if count == right else count

    monkeypatch.setattr(Emulated, "initialise", staticmethod(initialise))
    q, slots = randn(1, 64, LATENT + ROPE, seed=12), lists(2, 400)[1:]
    cache, rows = filled_cache(slots[slots >= 0].unique().long())
    wanted = expected(q, rows, slots, [0, 63])
    with pytest.raises(AssertionError):  # Deadlock is one
        for seed in range(30):
            found = run(q, cache, slots, seed, splits=1)
            assert_close([x[:, [0, 63]] for x in found], wanted)


@interpreted
def test_a_barrier_counts_as_the_hardwares_does() -> None:
    barrier = Barrier()
    barrier.count = barrier.missing = 2
    found = []
    for _ in range(5):
        found.append((barrier.over(0), barrier.over(1)))
        barrier.arrive()
    assert found == [(False, True)] * 2 + [(True, False)] * 2 + [(False, True)]


@interpreted
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_parity_alternates_with_each_use_of_a_buffer(buffers: int) -> None:
    """A reader of step s waits for a phase that s // buffers fillings of its buffer precede."""
    parity = sparse_mla_gather.parity.fn
    for step in range(20):
        barrier = Barrier()
        barrier.count = barrier.missing = 1
        for _ in range(step // buffers):
            barrier.arrive()
        assert not barrier.over(parity(step, buffers))
        assert barrier.over(parity(step, buffers) ^ 1)
        barrier.arrive()
        assert barrier.over(parity(step, buffers))


@interpreted
@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7), reason="3.6 cannot print layouts"
)
def test_words_lie_where_their_bfloat16_do_and_are_written_without_conflicts() -> None:
    context = ir.context()
    ir.load_dialects(context)
    make_backend(HOPPER).load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)

    def bases(layout: Any, shape: list[int]) -> Any:
        return builder.to_linear_layout(layout.value._to_ir(builder), shape)

    # Bit i of an offset moves by this many rows and columns. Words have no bit for the half word.
    words = bases(sparse_mla_gather.OPERAND_WORDS, [64, LATENT // 2]).offset_bases
    halves = bases(sparse_mla_gluon.OPERAND, [64, LATENT]).offset_bases
    assert halves[0] == [0, 1] and words == [[row, column // 2] for row, column in halves[1:]]

    gathered = bases(sparse_mla_gather.GATHERED, [64, 32])

    def doubled(moves: list[list[int]]) -> list[list[int]]:
        return [[row, 2 * column] for row, column in moves]

    converted = gl.DistributedLinearLayout(
        [[0, 1], *doubled(gathered.reg_bases)],
        doubled(gathered.lane_bases),
        doubled(gathered.warp_bases),
        [],
        [64, 64],
    )
    stored = sparse_mla_gather.OPERAND_WORDS.value._to_ir(builder)
    assert builder.get_shared_bank_conflicts(converted._to_ir(builder), stored, [64, 64], 32) == 0


PRINT_PTX = """
from kernels.hopper.sparse_mla_gluon import SPECIALISATIONS
from kernels.hopper.specialisation import compiled_for_hopper
print(compiled_for_hopper(SPECIALISATIONS[-1]).asm["ptx"])
"""


@pytest.mark.parametrize(
    "version", [None, *(pytest.param(version, marks=pytest.mark.check) for version in KNOWN)]
)
def test_all_threads_of_a_partition_are_done_before_one_of_them_arrives(
    version: str | None,
) -> None:
    """The compiler puts the partition's barrier between what its threads did in shared memory and
    the arrival that one thread does for them, and the fence of operands before that."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_PTX],
        cwd=ROOT,
        env=variables if version is None else environment(version),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    steps = re.findall(
        r"\b(st\.shared|stmatrix|ld\.shared|wgmma\.wait_group|fence\.proxy\.async|bar\.sync"
        r"|mbarrier\.arrive)",
        done.stdout,
    )
    arrivals = [at for at, step in enumerate(steps) if step == "mbarrier.arrive"]
    assert len(arrivals) == 6 and all(steps[at - 1] == "bar.sync" for at in arrivals)
    fenced = [at for at in arrivals if steps[at - 2] == "fence.proxy.async"]
    assert len(fenced) == 2  # a tile, and the weights


GOOD: dict[str, Any] = {
    "q": torch.zeros(2, 64, LATENT + ROPE, dtype=torch.bfloat16),
    "cache": torch.zeros(4, 656, dtype=torch.uint8),
    "slots": torch.zeros(2, 8, dtype=torch.int32),
    "scale": 0.1,
    "latent": LATENT,
    "kernel": "gluon",
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": "cuda"}, "kernel is 'cuda'; it must be 'triton' or 'gluon'"),
        ({"q": GOOD["q"][:, :32]}, "number of heads is 32; it serves 64 and 128"),
        (
            {"q": GOOD["q"][..., :144], "cache": GOOD["cache"][:, :164], "latent": 128},
            "latent and rope width are 128 and 16; it serves 512 and 64",
        ),
        ({"cache": torch.zeros(4, 576).bfloat16()}, "cache is torch.bfloat16; it serves fp8"),
        ({"cache": torch.zeros(4, 660, dtype=torch.uint8)[:, 4:]}, "cache starts at .* 16"),
        ({"q": torch.zeros(2, 64, 580).bfloat16()[..., :576]}, "q starts at .* 16"),
    ],
)
def test_what_is_not_supported_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(sparse_mla_gluon, "missing", lambda: None)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)  # takes tensors on the CPU
    with pytest.raises(ValueError, match=message):
        sparse_mla(**{**GOOD, **wrong})


@interpreted
def test_the_interpreter_is_refused() -> None:
    with pytest.raises(ValueError, match="'gluon'; Triton's interpreter does not run Gluon"):
        sparse_mla(**GOOD)


def test_a_triton_without_gluon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    monkeypatch.delattr("kernels.hopper.sparse_mla_gluon")
    monkeypatch.delitem(sys.modules, "kernels.hopper.sparse_mla_gluon")
    monkeypatch.setitem(sys.modules, "triton.experimental.gluon", None)
    with pytest.raises(ValueError, match=r"'gluon', which triton .* does not have"):
        sparse_mla(**GOOD)
