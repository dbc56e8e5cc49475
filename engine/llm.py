"""Offline generation in this process.

llm = LLM()                                   # the embedded checkpoint
for completion in llm.generate(["Hello"], Sampling(max_tokens=16)):
    print(completion.text)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer
from tqdm import tqdm

from engine.config import EngineConfig
from engine.loading import load_replica
from scheduler.logprobs import TokenLogprobs
from scheduler.outcome import Refusal
from scheduler.request import FinishReason, Sampling
from scheduler.scheduler import Scheduler


class Completion(msgspec.Struct):
    """One prompt's answer."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    """Generated tokens; the stop token, if one ended it, is the last."""
    text: str
    finish: FinishReason
    logprobs: list[TokenLogprobs]
    """One per token when the sampling asks for them, else empty."""


class PromptRefused(ValueError):
    """A prompt that cannot run; the message gives its number and the reason."""


def check_ranges(sampling: Sampling) -> None:
    """Raises ValueError naming a field that is out of its range, with the value and the range."""
    for name, allowed, fits in (
        ("max_tokens", "at least 1", sampling.max_tokens >= 1),
        ("temperature", "0 to 2", 0 <= sampling.temperature <= 2),
        ("top_p", "above 0, at most 1", 0 < sampling.top_p <= 1),
        ("top_k", "at least 0", sampling.top_k >= 0),
        ("min_p", "0 to 1", 0 <= sampling.min_p <= 1),
        ("frequency_penalty", "-2 to 2", -2 <= sampling.frequency_penalty <= 2),
        ("presence_penalty", "-2 to 2", -2 <= sampling.presence_penalty <= 2),
        ("repetition_penalty", "above 0, at most 2", 0 < sampling.repetition_penalty <= 2),
    ):
        if not fits:
            raise ValueError(f"{name} is {getattr(sampling, name)}; allowed: {allowed}")


class LLM:
    """A replica without a server: same scheduler, same runner, same results.

    Keyword arguments are the fields of EngineConfig. Nobody reads tokens as they come, so steps are
    as large as tokens allow unless `inter_token_target_s` is given.
    """

    def __init__(self, model: str = "", *, progress: bool = True, **settings: Any) -> None:
        offline = {"model": model, "inter_token_target_s": 0}
        config = msgspec.convert(offline | settings, EngineConfig)
        self.replica = load_replica(config, progress=progress)
        self._scheduler = self.replica.scheduler
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(self.replica.folder / "tokenizer.json"))

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Returns one completion per prompt, in order; prompts are text or token ids.

        Text is encoded as it stands, special tokens included. sampling: one for all or one for
        each; None: the checkpoint's own temperature and top_p, up to the end of the window. Before
        anything runs it raises PromptRefused if a prompt does not fit the window or the vocabulary,
        ValueError if there are not as many samplings as prompts or a field of one is out of range,
        TypeError for prompts that are one string.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts is one string; it must be a sequence of prompts")
        ids = [
            self.tokenizer.encode(p, add_special_tokens=False).ids if isinstance(p, str) else p
            for p in prompts
        ]
        if sampling is None:
            sampling = self._default_sampling()
        samplings = [sampling] * len(ids) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(ids):
            raise ValueError(f"{len(samplings)} samplings for {len(ids)} prompts")
        for one in samplings:
            check_ranges(one)
        self._check(ids)
        completions = [Completion(p, [], "", "error", []) for p in ids]
        try:
            with tqdm(total=len(ids), desc="generate", unit="prompt", disable=not progress) as bar:
                self._run(completions, samplings, bar)
        except BaseException:
            # Cut short in the middle of a step: queue and mirrors no longer agree. Start anew.
            self._scheduler = Scheduler(self._scheduler.config, self._scheduler.predictor)
            self.replica.runner.slots.clear()
            raise
        for completion in completions:
            completion.text = self.tokenizer.decode(completion.token_ids)
        return completions

    def _default_sampling(self) -> Sampling:
        """What generation_config.json asks for, as the server does where a request is silent."""
        wishes = {
            name: wish
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if (wish := getattr(self.replica.defaults, name)) is not None
        }
        longest = self.replica.defaults.max_new_tokens or self._scheduler.config.max_model_len
        return Sampling(max_tokens=longest, **wishes)

    def _check(self, prompts: list[list[int]]) -> None:
        window, vocab = self._scheduler.config.max_model_len, self.replica.model.vocab_size
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < window:
                raise PromptRefused(
                    f"prompt {number} has {len(prompt)} tokens; allowed: 1 to {window - 1}"
                )
            if not 0 <= min(prompt) <= max(prompt) < vocab:
                raise PromptRefused(
                    f"prompt {number} has a token id outside the vocabulary, 0 to {vocab - 1}"
                )

    def _run(self, completions: list[Completion], samplings: list[Sampling], bar: Any) -> None:
        """Fills the completions; request ids are their places in the list."""
        scheduler, runner = self._scheduler, self.replica.runner
        submitted = 0
        while submitted < len(completions) or scheduler.has_work:
            while submitted < len(completions):
                prompt = completions[submitted].prompt_token_ids
                answer = scheduler.submit(str(submitted), prompt, samplings[submitted])
                if isinstance(answer, Refusal):  # the queue is full: go on after a step
                    break
                submitted += 1
            for news in scheduler.commit(runner.execute(scheduler.plan())):
                completion = completions[int(news.request_id)]
                completion.token_ids += news.token_ids
                completion.logprobs += news.logprobs or []
                if news.finish:
                    completion.finish = news.finish
                    bar.update()
