"""Runs the Python of a Gluon kernel on the CPU: tensors for layouts, threads for partitions.

Triton's interpreter does not know Gluon. What a kernel means does not depend on its layouts, so its
functions are executed as they stand, with other things behind the names that they use: a pointer is
an address into a tensor's storage, shared memory is a tensor full of NaN, a barrier counts as the
hardware's does, and a product reads its operands at once or when it is waited for.

Partitions take turns: one runs at a time, and whenever it touches shared memory or a barrier, a
seeded draw says who goes on. When all that are left wait, the protocol has a deadlock. What a
partition overwrites too early shows in the result, what it reads too early is NaN.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from kernels.hopper.latent_attention import E4M3_TO_BFLOAT16
from kernels.hopper.sparse_mla_gather import MULTIPLY_PAIRS


class Deadlock(AssertionError):
    """All partitions wait."""


class Turns:
    """Lets one of several threads run at a time, and draws the next one."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.changed = threading.Condition()
        self.waiting: dict[int, Callable[[], bool]] = {}
        self.running: int | None = None
        self.error: BaseException | None = None

    def run(self, partitions: Sequence[Callable[[], None]]) -> None:
        """Runs all to their ends; raises what the first of them raises."""
        self.waiting = {number: lambda: True for number in range(len(partitions))}
        threads = [
            threading.Thread(target=self._thread, args=(number, partition), daemon=True)
            for number, partition in enumerate(partitions)
        ]
        with self.changed:
            self._next()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def until(self, ready: Callable[[], bool]) -> None:
        """Goes on when `ready` holds and this thread is drawn."""
        if self.running is None:
            assert ready(), "before the partitions start there is nobody to wait for"
            return
        me = self.running
        with self.changed:
            self.waiting[me] = ready
            self._next()
            self._await_turn(me)

    def _await_turn(self, me: int) -> None:
        self.changed.wait_for(lambda: self.running == me or self.error is not None)
        if self.error is not None:
            raise SystemExit

    def _next(self) -> None:
        able = [number for number, ready in self.waiting.items() if ready()]
        if self.waiting and not able:
            self.error = Deadlock(f"partitions {sorted(self.waiting)} wait for one another")
        self.running = None
        if able:
            number = self.draw.choice(able)
            del self.waiting[number]
            self.running = number
        self.changed.notify_all()

    def _thread(self, me: int, partition: Callable[[], None]) -> None:
        try:
            with self.changed:
                self._await_turn(me)
            partition()
        except SystemExit:
            return
        except BaseException as error:
            self.error = self.error or error
        with self.changed:
            self._next()


class Value(Tensor):
    """A tensor with the methods of a kernel's."""

    def to(self, dtype: torch.dtype, bitcast: bool = False) -> Value:  # type: ignore[override]
        return self.view(dtype) if bitcast else super().to(dtype)

    def __iadd__(self, other: Any) -> Value:  # a kernel's values do not change
        return self + other

    def __imul__(self, other: Any) -> Value:
        return self * other


def value(tensor: Tensor) -> Value:
    return tensor.as_subclass(Value)


class Pointer:
    """Byte addresses in a tensor's storage, of elements of a dtype."""

    def __init__(self, storage: Tensor, address: Any, element: torch.dtype) -> None:
        self.storage, self.address, self.element = storage, address, element
        self.dtype = SimpleNamespace(element_ty=element)

    @classmethod
    def of(cls, tensor: Tensor) -> Pointer:
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        start = tensor.storage_offset() * tensor.element_size()
        return cls(storage, torch.tensor(start), tensor.dtype)

    def __add__(self, elements: Any) -> Pointer:
        offset = torch.as_tensor(elements).as_subclass(Tensor).to(torch.int64)
        reached = self.address + offset * self.element.itemsize
        return Pointer(self.storage, reached, self.element)

    def to(self, element: torch.dtype) -> Pointer:
        return Pointer(self.storage, self.address, element)

    def places(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The storage as elements, and where in it the addresses of `mask` lie."""
        size = self.element.itemsize
        address = self.address.expand(mask.shape)[mask]
        assert (address >= 0).all() and (address % size == 0).all(), "an address out of place"
        whole = self.storage[: len(self.storage) // size * size].view(self.element)
        return whole, address // size


class Shared:
    """A piece of shared memory."""

    def __init__(self, data: Tensor, turns: Turns) -> None:
        self.data, self.turns = data, turns

    def index(self, at: int) -> Shared:
        return Shared(self.data[int(at)], self.turns)

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        return Shared(self.data.narrow(dim, start, length), self.turns)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order), self.turns)

    def reinterpret(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
        return Shared(self.data.view(dtype).view(shape), self.turns)

    _reinterpret = reinterpret

    def store(self, stored: Tensor) -> None:
        assert stored.shape == self.data.shape and stored.dtype == self.data.dtype
        self.turns.until(lambda: True)
        self.data.copy_(stored)

    def load(self, layout: Any) -> Value:
        self.turns.until(lambda: True)
        return value(self.data.clone())


class Barrier:
    """Counts arrivals; with the last one its phase is over and the next begins."""

    def __init__(self) -> None:
        self.count = self.missing = self.phase = 0

    def arrive(self) -> None:
        assert self.count, "the barrier was not initialised"
        self.missing -= 1
        if self.missing == 0:
            self.phase, self.missing = self.phase + 1, self.count

    def over(self, parity: int) -> bool:
        """Whether the last phase of this parity is over; of a new one, that of parity 1 is."""
        return self.phase % 2 != parity


class Barriers:
    def __init__(self, count: int) -> None:
        self.all = [Barrier() for _ in range(count)]

    def index(self, at: int) -> Barrier:
        return self.all[int(at)]


class Product:
    """A product under way, whose operands are read when it is issued or when it is waited for."""

    def __init__(self, a: Any, b: Shared, added: Any, use_acc: bool) -> None:
        self.operands, self.added, self.use_acc = (a, b), added, use_acc
        self.early = self.read() if b.turns.draw.random() < 0.5 else None

    def read(self) -> Tensor:
        a, b = (x.data if isinstance(x, Shared) else x.as_subclass(Tensor) for x in self.operands)
        return a.float() @ b.float()

    def done(self) -> Value:
        product = self.read() if self.early is None else self.early
        if not self.use_acc:
            return value(product)
        added = self.added.done() if isinstance(self.added, Product) else self.added
        return value(added + product)


class Language:
    """What a kernel calls `gl`; layouts and the like are the real ones."""

    int32, int64, uint16 = torch.int32, torch.int64, torch.uint16
    bfloat16, float32 = torch.bfloat16, torch.float32
    static_range = staticmethod(range)

    def __init__(self, program: int, turns: Turns) -> None:
        self.program, self.turns = program, turns

    def __getattr__(self, name: str) -> Any:
        return getattr(gl, name)

    def program_id(self, axis: int) -> Value:
        return value(torch.tensor(self.program, dtype=torch.int32))

    def pointer_type(self, element: torch.dtype) -> torch.dtype:
        return element

    def arange(self, start: int, end: int, layout: Any) -> Value:
        return value(torch.arange(start, end, dtype=torch.int32))

    def zeros(self, shape: list[int], dtype: torch.dtype, layout: Any) -> Value:
        return value(torch.zeros(shape, dtype=dtype))

    def full(self, shape: list[int], filled: float, dtype: torch.dtype, layout: Any) -> Value:
        return value(torch.full(shape, filled, dtype=dtype))

    def load(self, pointer: Pointer, mask: Tensor | None = None, other: float = 0) -> Value:
        shape = pointer.address.shape
        wanted = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
        found = torch.full(shape, other, dtype=pointer.element)
        whole, places = pointer.places(wanted.as_subclass(Tensor))
        found[wanted.as_subclass(Tensor)] = whole[places]
        return value(found)

    def store(self, pointer: Pointer, stored: Tensor) -> None:
        assert stored.dtype == pointer.element
        whole, places = pointer.places(torch.ones(stored.shape, dtype=torch.bool))
        whole[places] = stored.as_subclass(Tensor).flatten()

    def where(self, condition: Tensor, yes: Any, no: Any) -> Value:
        return value(torch.where(condition, yes, no))

    def minimum(self, a: Any, b: Any) -> Value:
        return value(torch.fmin(torch.as_tensor(a), torch.as_tensor(b)))

    def maximum(self, a: Any, b: Any) -> Value:
        return value(torch.fmax(torch.as_tensor(a), torch.as_tensor(b)))

    def max(self, x: Tensor, axis: int) -> Value:
        return value(x.amax(axis))

    def sum(self, x: Tensor, axis: int) -> Value:
        return value(x.sum(axis))

    def exp2(self, x: Tensor) -> Value:
        return value(x.exp2())

    def log2(self, x: Tensor) -> Value:
        return value(x.log2())

    def cdiv(self, a: Any, b: int) -> Any:
        return (a + (b - 1)) // b

    def join(self, a: Tensor, b: Tensor) -> Value:
        return value(torch.stack((a, b), -1))

    def reshape(self, x: Tensor, shape: list[int]) -> Value:
        return value(x.reshape(shape))

    def convert_layout(self, x: Value, layout: Any) -> Value:
        return x

    def inline_asm_elementwise(
        self, asm: str, constraints: str, args: list[Tensor], **_: Any
    ) -> Any:
        plain = [arg.as_subclass(Tensor) for arg in args]
        if asm == MULTIPLY_PAIRS.value:
            a, b = (x.contiguous().view(torch.bfloat16) for x in torch.broadcast_tensors(*plain))
            return value((a * b).view(torch.int32))
        assert asm == E4M3_TO_BFLOAT16.value, "no emulation of this assembly"
        codes = plain[0].contiguous().view(torch.uint8).int()
        bits = ((codes & 0x80) << 8 | (codes & 0x7F) << 4).to(torch.int16)
        words = bits.contiguous().view(torch.int32)
        return value(words[..., 0::2]), value(words[..., 1::2])

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if dtype == torch.int64:
            return Barrier() if len(shape) == 1 else Barriers(shape[0])
        return Shared(torch.full(shape, torch.nan, dtype=dtype), self.turns)

    def warp_specialize(self, partitions: Any, warps: list[int], registers: list[int]) -> None:
        assert len(warps) == len(registers) == len(partitions) - 1
        # Bound as defaults: each has its own function and arguments.
        self.turns.run([lambda f=f, a=a: f(*a) for f, a in partitions])


class Emulated:
    """Stands in for a Gluon kernel: `kernel[grid](*arguments, **constants)` runs it here."""

    def __init__(self, kernel: Any, modules: Sequence[ModuleType], seed: int = 0) -> None:
        self.kernel, self.modules, self.seed = kernel, modules, seed

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            pointers = [Pointer.of(x) if isinstance(x, Tensor) else x for x in arguments]
            for program in range(grid[0]):
                functions = self.functions(program, Turns(self.seed * 1009 + program))
                functions[self.kernel.__name__](*pointers, **constants)

        return launch

    @staticmethod
    def initialise(barrier: Barrier, count: int) -> None:
        barrier.count = barrier.missing = count

    def functions(self, program: int, turns: Turns) -> dict[str, Any]:
        """The modules' names, with functions that run here in place of compiled ones."""

        def mma(
            a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False
        ) -> Product:
            assert is_async
            return Product(a, b, acc, use_acc)

        def mma_wait(outstanding: int, deps: tuple[Product]) -> Value:
            assert outstanding == 0
            turns.until(lambda: True)
            return deps[0].done()

        def wait(barrier: Barrier, parity: int) -> None:
            turns.until(lambda: barrier.over(int(parity)))

        def arrive(barrier: Barrier) -> None:
            turns.until(lambda: True)
            barrier.arrive()

        names: dict[str, Any] = {}
        for module in self.modules:
            for name, found in vars(module).items():
                names[name] = found.value if isinstance(found, gl.constexpr) else found
        names[self.kernel.__name__] = self.kernel  # this object may stand there
        compiled = {name: found for name, found in names.items() if hasattr(found, "is_gluon")}
        names |= {
            "gl": Language(program, turns),
            "mbarrier": SimpleNamespace(
                init=self.initialise, wait=wait, arrive=arrive, MBarrierLayout=lambda: None
            ),
            "warpgroup_mma": mma,
            "warpgroup_mma_wait": mma_wait,
            "fence_async_shared": lambda: None,
        }
        for name, function in compiled.items():
            names[name] = FunctionType(function.fn.__code__, names, name, function.fn.__defaults__)
        return names
