"""What the server still knows of a conversation's tool turns goes back into it.

Reasoning that the client sent wins; reasoning that it lost is restored, and what it repeats as it
was is spliced token by token. See `api.conversation.reasoning_store` for how a turn is found again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from api.chat.encoding import Encoder
from api.chat.messages import (
    Message,
    PromptError,
    ToolCall,
    Written,
    last_user,
    lift_inline_reasoning,
)
from api.chat.splicing import written_turn
from api.conversation.reasoning_store import (
    ReasoningStore,
    StoredTurn,
    digest_of_rest,
    digest_of_text,
)
from api.response import AssistantMessage
from scheduler.retention import keeps_reasoning

MissingReasoning = Literal["restore", "empty", "error"]
"""What is done about a tool call of the running turn whose reasoning the client did not send back:
give it back, go on without, or answer 400 as DeepSeek does."""


class Restored(NamedTuple):
    messages: list[Message]
    spliced: int = 0
    """Messages that stand in the prompt with the tokens they were written in."""
    restored: int = 0
    """Those of them whose reasoning the client had dropped."""
    tokens: int = 0
    """Of that reasoning."""
    missed: int = 0
    """Messages without reasoning that nobody remembers."""


def demand_reasoning(messages: Sequence[Message], thinking: bool) -> None:
    """Changes nothing; raises PromptError for a running tool call without its reasoning.

    An empty string is an answer: models call tools without a thought, too.
    """
    opens_turn = last_user(messages)
    for index, message in enumerate(messages):
        keeps = keeps_reasoning(index, opens_turn, thinking)
        if message.role == "assistant" and message.tool_calls and keeps:
            if lift_inline_reasoning(message).reasoning is None:
                raise PromptError(
                    "Missing reasoning_content field in the assistant message at message index "
                    f"{index}.",
                    f"messages[{index}].reasoning_content",
                    "missing_reasoning_content",
                )


def restore(
    messages: Sequence[Message],
    store: ReasoningStore,
    owner: str,
    *,
    thinking: bool,
    policy: MissingReasoning,
) -> Restored:
    """Returns the conversation with the tokens that `owner` was given for its tool calls.

    Only the running turn gets its reasoning, and only in thinking mode. Under `empty` what the
    client dropped stays away. A call id that stands twice in the request restores nothing.
    `messages` have passed :func:`api.chat.messages.check_history`.
    """
    uses = Counter(call.id for message in messages for call in message.tool_calls)
    opens_turn = last_user(messages)
    found: list[Message] = []
    spliced = restored = tokens = missed = 0
    for index, message in enumerate(messages):
        if message.role != "assistant" or not message.tool_calls:
            found.append(message)
            continue
        message = lift_inline_reasoning(message)
        running = keeps_reasoning(index, opens_turn, thinking)
        blank = not (message.reasoning or "").strip()
        call_ids = [call.id for call in message.tool_calls]
        turn = None
        if all(uses[call_id] == 1 for call_id in call_ids):
            turn = store.get(owner, call_ids)
        if turn is not None:
            written = _written(message, turn, running, restores=blank and policy != "empty")
            spliced += written != Written()
            if blank and written.reasoning is not None and turn.reasoning_tokens:
                restored += 1
                tokens += turn.reasoning_tokens
            message = msgspec.structs.replace(message, written=written)
        elif running and message.reasoning is None:
            missed += 1
        if blank and message.reasoning is not None:
            # A space says "absent" in the words of some clients.
            message = msgspec.structs.replace(message, reasoning="")
        found.append(message)
    return Restored(found, spliced, restored, tokens, missed)


def _written(message: Message, turn: StoredTurn, running: bool, *, restores: bool) -> Written:
    """Which of the turn's tokens stand for the message."""
    same_rest = _digest_of_rest(message.content, message.tool_calls) == turn.rest
    same_reasoning = restores or digest_of_text(message.reasoning or "") == turn.reasoning
    reasoning, rest = turn.written.reasoning, turn.written.rest if same_rest else None
    if reasoning == ():
        # The calls began inside the reasoning: one cannot be had without the other.
        whole = running and same_reasoning and rest is not None
        return turn.written if whole else Written()
    return Written(reasoning if running and same_reasoning else None, rest)


def remember(
    store: ReasoningStore,
    owner: str,
    encoder: Encoder,
    *,
    said: AssistantMessage,
    token_ids: Sequence[int],
    in_reasoning: bool,
    reasoning_tokens: int,
) -> None:
    """Keeps the turn that ended in the calls of `said`, as it was sent to the client.

    token_ids: everything sampled for it. in_reasoning: its prompt ended in `<think>`.
    """
    calls = [
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in said.tool_calls or ()
    ]
    written = written_turn(encoder, token_ids, in_reasoning)
    rest = _digest_of_rest(said.content or "", calls)
    if not calls or rest is None or written == Written():
        return
    reasoning = said.reasoning_content if isinstance(said.reasoning_content, str) else ""
    store.put(
        owner,
        [call.id for call in calls],
        StoredTurn(
            written,
            digest_of_text(reasoning),
            rest,
            reasoning_tokens,
        ),
    )


def _digest_of_rest(content: str, calls: Sequence[ToolCall]) -> bytes | None:
    """Returns the digest, None of what cannot be compared; such a turn is rendered as it is."""
    try:
        return digest_of_rest(content, calls)
    except ValueError:
        return None
