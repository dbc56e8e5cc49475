"""Generation beside other implementations: one checkpoint, the same prompts, parity first."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from benchmarks.step import drain, prompt
from engine.checkpoint import load_weights
from engine.loading import Replica
from engine.model_config import ModelConfig
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler

EachStep = Callable[[list[int]], None]
"""Called with the next token of every sequence; the first time after the prefill."""


MOST_PARTED = 1 / 16
"""Of a batch's sequences may have other tokens from some place on: in small batches none. Index
scores may tie at the k-th place, above all at the 0 that ReLU leaves; others then select any of
the tied tokens, and greedy decoding goes on from there."""


class ParityError(RuntimeError):
    """Two implementations disagree, so that nothing is timed."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation's times for a batch of prompts of one length, medians, in seconds."""

    who: str
    batch: int
    prompt_tokens: int
    prefill_s: float
    """Until every sequence of the batch has its first token."""
    decode_step_s: float
    """Between two tokens of every sequence, all of which decode."""
    prefill_runs_s: list[float]
    decode_step_runs_s: list[float]
    """Of every repeat, the median of its steps."""
    parted: int
    """Sequences whose tokens are not ours from some place on."""

    @property
    def tokens_per_s(self) -> float:
        """Decoded by the whole batch."""
        return self.batch / self.decode_step_s


class Peer(Protocol):
    """An implementation that generates greedily."""

    who: str

    def generate(self, prompts: list[list[int]], tokens: int, each_step: EachStep) -> None:
        """Generates `tokens` tokens for each of the prompts, all of one length."""


class Winnow:
    """Scheduler and runner in this process, as the server's engine runs them."""

    def __init__(self, who: str, replica: Replica) -> None:
        self.who, self.replica = who, replica

    def generate(self, prompts: list[list[int]], tokens: int, each_step: EachStep) -> None:
        """As Peer says. Prompts that others overtake in the prefill decode meanwhile, and go on
        until the last has its tokens: from the first call on, every step has a row of each.

        Raises RuntimeError when the replica is too small for what they decode meanwhile.
        """
        scheduler, runner = Scheduler(self.replica.scheduler.config), self.replica.runner
        endless = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)
        for i, ids in enumerate(prompts):
            scheduler.submit(str(i), ids, endless)
        answers: list[list[int]] = [[] for _ in prompts]
        for shown in range(tokens):
            while min(map(len, answers)) <= shown:
                for news in scheduler.commit(runner.execute(scheduler.plan())):
                    if news.finish is not None:
                        raise RuntimeError(f"sequence {news.request_id} ended before the others")
                    answers[int(news.request_id)] += news.token_ids
            each_step([answer[shown] for answer in answers])
        drain(scheduler, runner)


class Transformers:
    """transformers' `generate`, in float32."""

    who = "transformers"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], tokens: int, each_step: EachStep) -> None:
        ids = torch.tensor(prompts)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_streamer(each_step),
        )


def _streamer(each_step: EachStep) -> Any:
    from transformers.generation.streamers import BaseStreamer

    class Steps(BaseStreamer):
        """Hands on every step but the first call, which brings the prompts."""

        prompts = True

        def put(self, value: torch.Tensor) -> None:
            if not self.prompts:
                each_step(value.flatten().tolist())
            self.prompts = False

        def end(self) -> None:
            pass

    return Steps()


def llama_cpp_found(model: ModelConfig) -> bool:
    """Whether llama-cpp-python and the gguf package, which writes its files, are installed, and
    llama.cpp takes `model`: it ends the process where index heads are no multiple of 64 wide."""
    installed = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))
    return installed and model.index_head_dim % 64 == 0


def export_float32(folder: Path, target: Path) -> Path:
    """Writes `folder`'s checkpoint without FP8 and MTP layers, for others to read; returns it."""
    model = ModelConfig.from_folder(folder)
    weights = load_weights(
        folder, model, dtype=torch.float32, device=torch.device("cpu"), progress=False
    )
    left_out = tuple(f"model.layers.{layer}." for layer in model.mtp_layer_ids)
    kept = {
        n: w.contiguous() for n, w in weights.items() if not (left_out and n.startswith(left_out))
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    config |= {"num_nextn_predict_layers": 0, "torch_dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config))
    for file in (*folder.glob("tokenizer*.json"), *folder.glob("generation_config.json")):
        shutil.copy(file, target)
    return target


def compare(
    peers: list[Peer],
    vocab_size: int,
    *,
    batches: list[int],
    prompt_tokens: list[int],
    tokens: int,
    repeats: int,
) -> list[Generation]:
    """Returns the times of all peers, in turns, after their greedy tokens were found equal, those
    of every batch and prompt before anything is timed.

    Raises ParityError as `check_parity` does; the first peer's tokens are those to compare with.
    """
    shapes = [
        [prompt(count, vocab_size, seed) for seed in range(batch)]
        for count in prompt_tokens
        for batch in batches
    ]
    parted: dict[tuple[str, int, int], int] = {}
    for prompts in tqdm(shapes, desc="parity", leave=False):
        shape = len(prompts), len(prompts[0])
        ours, *others = [_steps(peer, prompts, tokens) for peer in peers]
        for peer, theirs in zip(peers[1:], others, strict=True):
            who = f"{peer.who}, {shape[0]} x {shape[1]}"
            parted[peer.who, *shape] = check_parity(ours, theirs, who)
    found = []
    for prompts in shapes:
        batch, count = len(prompts), len(prompts[0])
        runs: dict[str, list[list[float]]] = {peer.who: [] for peer in peers}
        for _ in tqdm(range(repeats), desc=f"{batch} x {count}", leave=False):
            for peer in peers:
                runs[peer.who].append(_timed(peer, prompts, tokens))
        found += [
            _summary(who, batch, count, times, parted.get((who, batch, count), 0))
            for who, times in runs.items()
        ]
    return found


def _summary(
    who: str, batch: int, prompt_tokens: int, runs: list[list[float]], parted: int
) -> Generation:
    """runs: of every repeat, the prefill and the steps after it."""
    prefills, steps = [run[0] for run in runs], [statistics.median(run[1:]) for run in runs]
    return Generation(
        who=who,
        batch=batch,
        prompt_tokens=prompt_tokens,
        prefill_s=statistics.median(prefills),
        decode_step_s=statistics.median(steps),
        prefill_runs_s=prefills,
        decode_step_runs_s=steps,
        parted=parted,
    )


def check_parity(ours: list[list[int]], theirs: list[list[int]], who: str) -> int:
    """Compares two lists of steps, one token per sequence each; returns how many sequences part.

    Raises ParityError naming the first token that parts one sequence more than MOST_PARTED.
    """
    parted: set[int] = set()
    for step, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for sequence, (mine, yours) in enumerate(zip(own, other, strict=True)):
            if mine == yours or sequence in parted:
                continue
            parted.add(sequence)
            if len(parted) > MOST_PARTED * len(own):
                raise ParityError(
                    "no times, since results differ: "
                    f"sequence {sequence}: token {step} is {mine} here and {yours} in {who}; "
                    f"{len(parted)} of {len(own)} sequences have parted"
                )
    return len(parted)


def _steps(peer: Peer, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    steps: list[list[int]] = []
    peer.generate(prompts, tokens, steps.append)
    return steps


def _timed(peer: Peer, prompts: list[list[int]], tokens: int) -> list[float]:
    moments = [time.perf_counter()]
    peer.generate(prompts, tokens, lambda _: moments.append(time.perf_counter()))
    return [after - before for before, after in pairwise(moments)]
