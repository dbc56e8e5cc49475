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
from scheduler.plan import TokenLogprobs
from scheduler.request import FinishReason, Sampling
from scheduler.scheduler import Refusal


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


class LLM:
    """A replica without a server: same scheduler, same runner, same results.

    Keyword arguments are the fields of EngineConfig.
    """

    def __init__(self, model: str = "", *, progress: bool = True, **settings: Any) -> None:
        config = msgspec.convert({"model": model, **settings}, EngineConfig)
        self.replica = load_replica(config, progress=progress)
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(self.replica.folder / "tokenizer.json"))

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Returns one completion per prompt, in order; prompts are text or token ids.

        Text is encoded as it stands, special tokens included. Raises PromptRefused before
        anything runs if a prompt does not fit the window.
        """
        ids = [
            self.tokenizer.encode(p, add_special_tokens=False).ids if isinstance(p, str) else p
            for p in prompts
        ]
        samplings = [sampling] * len(ids) if isinstance(sampling, Sampling) else list(sampling)
        scheduler, runner = self.replica.scheduler, self.replica.runner
        window = scheduler.config.max_model_len
        for number, prompt in enumerate(ids):
            if not 1 <= len(prompt) < window:
                raise PromptRefused(
                    f"prompt {number} has {len(prompt)} tokens; allowed: 1 to {window - 1}"
                )
        completions = [Completion(p, [], "", "error", []) for p in ids]
        pending = iter(enumerate(zip(ids, samplings, strict=True)))
        following = next(pending, None)
        with tqdm(total=len(ids), desc="generate", unit="prompt", disable=not progress) as bar:
            while following is not None or scheduler.has_work:
                while following is not None:
                    number, (prompt, how) = following
                    answer = scheduler.submit(str(number), prompt, how)
                    if isinstance(answer, Refusal):  # the queue is full: go on after a step
                        break
                    following = next(pending, None)
                for news in scheduler.commit(runner.execute(scheduler.plan())):
                    completion = completions[int(news.request_id)]
                    completion.token_ids += news.token_ids
                    completion.logprobs += news.logprobs or []
                    if news.finish:
                        completion.finish = news.finish
                        bar.update()
        for completion in completions:
            completion.text = self.tokenizer.decode(completion.token_ids)
        return completions
