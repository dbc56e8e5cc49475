"""New choices for the requests of one model: how their tokens are read, by what was asked for."""

from __future__ import annotations

from api.chat.detokenizer import Detokenizer, TokenBytes
from api.chat.encoding import Encoder, Prompt
from api.chat.parser import OutputParser
from api.chat.plain import PlainText
from api.chat.stop import StopMatcher
from api.chat_request import ChatRequest
from api.choice import Choice, PromptOnly
from api.completions.request import CompletionRequest
from api.generation_request import GenerationRequest
from api.logprobs import LogprobWriter


class Choices:
    """Makes the choices of one checkpoint's requests.

    end_token_ids: end an answer. lenient: whether calls in nearly the right form count where the
    request does not say.
    """

    def __init__(
        self,
        encoder: Encoder,
        token_bytes: TokenBytes,
        end_token_ids: tuple[int, ...],
        *,
        lenient: bool,
    ) -> None:
        self._encoder, self._token_bytes = encoder, token_bytes
        self._end_token_ids, self._lenient = end_token_ids, lenient

    def of_chat(self, index: int, request: ChatRequest, prompt: Prompt) -> Choice:
        """Returns a choice that reads reasoning, content and calls."""
        return Choice(
            index,
            OutputParser(
                prompt.in_reasoning,
                request.may_call,
                tool_schemas=request.functions or None,
                lenient=self._lenient
                if request.lenient_tool_calls is None
                else request.lenient_tool_calls,
            ),
            Detokenizer(self._token_bytes, self._end_token_ids),
            StopMatcher(request.stops),
            in_reasoning=prompt.in_reasoning,
            end_token_ids=frozenset(request.sampling.stop_token_ids),
            think_end_token_id=self._encoder.think_end_token_id,
            one_call=request.one_call,
            logprobs=self._wanted_logprobs(request),
            return_token_ids=request.return_token_ids,
        )

    def of_text(self, index: int, request: CompletionRequest) -> Choice:
        """Returns a choice of nothing but text."""
        kind = PromptOnly if request.only_prompt else Choice
        return kind(
            index,
            PlainText(),
            Detokenizer(self._token_bytes),
            StopMatcher(request.stops),
            in_reasoning=False,
            end_token_ids=frozenset(request.sampling.stop_token_ids),
            think_end_token_id=self._encoder.think_end_token_id,
            logprobs=self._wanted_logprobs(request),
            return_token_ids=request.return_token_ids,
        )

    def logprobs(self, request: GenerationRequest) -> LogprobWriter:
        """Returns what writes the log-probabilities of a request's tokens."""
        return LogprobWriter(self._token_bytes, as_ids=request.tokens_as_ids)

    def _wanted_logprobs(self, request: GenerationRequest) -> LogprobWriter | None:
        return None if request.sampling.logprobs is None else self.logprobs(request)
