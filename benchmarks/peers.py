"""Generation beside transformers: the same checkpoint, prompts and threads, parity first."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from benchmarks.step import load, prompt
from engine.checkpoint import load_weights
from engine.loading import Replica
from engine.model_config import ModelConfig
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler


class ParityError(RuntimeError):
    """Two implementations disagree; nothing is timed."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation's times for a batch of equal prompts, medians, in seconds."""

    who: str
    batch: int
    prompt_tokens: int
    prefill_s: float
    """Until every sequence of the batch has its first token."""
    decode_step_s: float
    """Between two tokens of every sequence."""

    @property
    def tokens_per_s(self) -> float:
        """Decoded by the whole batch."""
        return self.batch / self.decode_step_s


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


class Transformers:
    """A greedy loop over transformers' forward pass with its own cache, in float32."""

    who = "transformers"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], tokens: int) -> Iterator[list[int]]:
        """Yields every sequence's next token, step by step; the first after the prefill."""
        ids = torch.tensor(prompts)
        cache = None
        for _ in range(tokens):
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            yield ids.squeeze(1).tolist()


class Winnow:
    """Scheduler and runner in this process, as the server's engine runs them."""

    who = "winnow"

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def generate(self, prompts: list[list[int]], tokens: int) -> Iterator[list[int]]:
        """Yields every sequence's next token, step by step; the first after the prefill."""
        scheduler = Scheduler(self.replica.scheduler.config)
        greedy = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        for i, ids in enumerate(prompts):
            scheduler.submit(str(i), ids, greedy)
        answers: list[list[int]] = [[] for _ in prompts]
        for step in range(tokens):
            while min(map(len, answers)) <= step:
                for news in scheduler.commit(self.replica.runner.execute(scheduler.plan())):
                    answers[int(news.request_id)] += news.token_ids
            yield [answer[step] for answer in answers]
        while scheduler.has_work:
            scheduler.commit(self.replica.runner.execute(scheduler.plan()))


def compare(
    folder: Path,
    exported: Path,
    *,
    batches: list[int],
    prompt_tokens: list[int],
    tokens: int,
    repeats: int,
    **settings: Any,
) -> list[Generation]:
    """Returns the times of both, in turns, after their greedy tokens were found equal.

    Sequences that another one overtakes in Winnow's prefill (a step takes as many prompt tokens
    as its budget) decode meanwhile; its prefill time is until all have their first token.
    Raises ParityError naming the sequence and the first token that differs.
    """
    vocab = ModelConfig.from_folder(folder).vocab_size
    longest = max(prompt_tokens) + tokens + 1
    replica = load(folder, sequences=max(batches), tokens=longest, **settings)
    everyone: list[Winnow | Transformers] = [Winnow(replica), Transformers(exported)]
    found = []
    for count in prompt_tokens:
        for batch in batches:
            prompts = [prompt(count, vocab, seed) for seed in range(batch)]
            check_parity(*([list(who.generate(prompts, tokens)) for who in everyone]))
            times: dict[str, list[list[float]]] = {who.who: [] for who in everyone}
            for _ in tqdm(range(repeats), desc=f"{batch} x {count}", leave=False):
                for who in everyone:
                    times[who.who].append(_timed(who, prompts, tokens))
            for name, runs in times.items():
                found.append(
                    Generation(
                        who=name,
                        batch=batch,
                        prompt_tokens=count,
                        prefill_s=statistics.median(run[0] for run in runs),
                        decode_step_s=statistics.median(statistics.median(run[1:]) for run in runs),
                    )
                )
    return found


def check_parity(ours: list[list[int]], theirs: list[list[int]]) -> None:
    """Raises ParityError unless two lists of steps, one token per sequence each, are equal."""
    for step, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for sequence, (mine, yours) in enumerate(zip(own, other, strict=True)):
            if mine != yours:
                raise ParityError(
                    f"sequence {sequence}: token {step} is {mine} here and {yours} in transformers"
                )


def _timed(who: Winnow | Transformers, prompts: list[list[int]], tokens: int) -> list[float]:
    times = []
    begin = time.perf_counter()
    for _ in who.generate(prompts, tokens):
        now = time.perf_counter()
        times.append(now - begin)
        begin = now
    return times
