"""A validated conversation -> the one the model sees, and its tokens.

What the server adds or takes away happens here, in this order: tool output sent as user messages is
recognised, lost reasoning restored, and a tool loop that outgrew the window cut.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from api.chat.continuation import split_started
from api.chat.encoding import Encoder, Prompt
from api.chat.messages import Message, check_history, normalise_history
from api.chat_request import ChatRequest
from api.config import ChatConfig
from api.conversation.context_management import Applied, PromptSizes, Summaries, manage
from api.conversation.reasoning_store import ReasoningStore
from api.conversation.restoration import Restored, demand_reasoning, restore
from api.conversation.simulated_tools import keep_until_marker, simulated_results
from api.profiles import ModelProfile, check_tools

logger = logging.getLogger("winnow.api")

SUMMARY_STORE_BYTES = 16 * 2**20


class ConversationCounts(msgspec.Struct):
    """Of conversations in thinking mode whose tools look simulated."""

    simulated_tool_requests: int = 0
    simulated_tool_messages: int = 0


class Conversations:
    """The rules of one server, and what it remembers of its conversations."""

    def __init__(
        self, encoder: Encoder, max_model_len: int, profile: ModelProfile, config: ChatConfig
    ) -> None:
        self.store = ReasoningStore(config.reasoning_store_bytes, config.reasoning_store_s)
        self.summaries = Summaries(SUMMARY_STORE_BYTES)
        self.counts = ConversationCounts()
        self._encoder, self._max_model_len = encoder, max_model_len
        self._profile, self._config = profile, config

    def prompt(self, request: ChatRequest, owner: str) -> tuple[ChatRequest, Prompt]:
        """Returns the request with the conversation that the model sees, and its prompt.

        owner: whose turns and summaries may be used. Raises PromptError naming `messages[i]` as in
        `request`, TemplateError, and SummaryNeeded when a summary has to be made first.
        """
        thinking = request.thinking
        history: Sequence[Message] = request.messages
        started = None
        if request.continues:
            history, started = split_started(history, thinking)
        check_tools(self._profile, bool(request.functions), history)
        policy = request.missing_reasoning or self._config.missing_reasoning
        if policy == "error":
            demand_reasoning(history, thinking)
        simulated = 0
        if request.retention_markers is not None:
            markers = request.retention_markers or self._config.tool_output_markers
            history = keep_until_marker(history, markers, thinking)
        elif thinking:
            simulated = simulated_results(history)
        check_history(history, thinking)
        restored = restore(history, self.store, owner, thinking=thinking, policy=policy)
        messages = restored.messages
        applied: list[Applied] = []
        if request.context_management is not None:
            messages, applied = manage(
                messages,
                request.context_management,
                PromptSizes(
                    self._encoder, request.functions or None, thinking, request.response_schema
                ),
                window_tokens=self._max_model_len,
                summary=self.summaries.get,
                salt=owner,
                started=started,
            )
        prompt = self._encoder.encode(
            normalise_history(messages),
            tools=request.functions or None,
            response_schema=request.response_schema,
            thinking=thinking,
            started=started,
        )
        self._count(restored, simulated)
        said: Any = [request.messages[-1]] if request.continues else []
        request = msgspec.structs.replace(
            request,
            messages=[*messages, *said],
            restored_tokens=restored.tokens,
            applied=tuple(applied),
        )
        return request, prompt

    def info(self) -> dict[str, Any]:
        """Returns what is held and what was done, in numbers."""
        return {
            "profile": self._profile.name,
            "reasoning_store": msgspec.to_builtins(self.store.counts),
            "summaries_bytes": self.summaries.size_bytes,
            **msgspec.to_builtins(self.counts),
        }

    def _count(self, restored: Restored, simulated: int) -> None:
        self.store.count(
            spliced=restored.spliced,
            restored=restored.restored,
            tokens=restored.tokens,
            missed=restored.missed,
        )
        if simulated:
            if not self.counts.simulated_tool_requests:
                logger.warning(
                    "a client sends tool output as user messages, which ends the reasoning at "
                    "every step: see docs/retention.md"
                )
            self.counts.simulated_tool_requests += 1
            self.counts.simulated_tool_messages += simulated
