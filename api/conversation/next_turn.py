"""What the next user message will find: the turn that just ended, without its reasoning.

The prompt up to the flip point stays as it was, token for token. What follows is rendered as
history, and ends in the marker that opens the next user message, whatever it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from api.chat.encoding import Encoder, Prompt
from api.chat.messages import Message, last_user, normalise_history
from engine.client import EngineClient
from engine.messages import TurnEnded
from scheduler.retention import flip_point

INLINE_CHARACTERS = 16 * 2**10
"""Longer turns are encoded on a thread, so that they do not hold up other streams."""

_NEXT = Message("user", "")
"""Stands for a message nobody has written yet."""
_BEFORE, _BEHIND = 3, 2
"""Tokens around a turn that is encoded between two empty user messages: the opening of the first
(begin of sentence, user, assistant), and what follows the second's user marker."""


def next_prefix(
    encoder: Encoder, prompt: Prompt, messages: Sequence[Message], answer: str
) -> list[int] | None:
    """Returns the token ids that the next user turn's prompt will start with.

    `messages` and `prompt` are the request's, `answer` the visible text that ended the turn. None
    when there is no user message: then there is no turn that could lose its reasoning.
    """
    history = normalise_history([*messages, Message("assistant", answer)])
    opens_turn = last_user(history)
    if opens_turn < 0:
        return None
    turn = [_NEXT, *history[opens_turn + 1 :], _NEXT]
    dropped = encoder.encode(turn, thinking=True).token_ids
    return prompt.token_ids[: flip_point(prompt.spans)] + dropped[_BEFORE:-_BEHIND]


class TurnEnds:
    """Tells an engine how turns end, and what follows them as soon as that is known."""

    def __init__(self, engine: EngineClient, encoder: Encoder) -> None:
        self._engine, self._encoder = engine, encoder
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(
        self, ended: TurnEnded, prompt: Prompt, messages: Sequence[Message], answer: str | None
    ) -> None:
        """Sends `ended`, with the next prompt's start if the turn ended in an answer.

        answer: its visible text; None when the next prompt is not to be guessed.
        """
        if answer is None or not self._engine.ready.pre_warms:
            self._engine.turn_ended(ended)
            return
        characters = len(answer) + sum(len(message.content) for message in messages)
        if characters <= INLINE_CHARACTERS:
            self._send(ended, next_prefix(self._encoder, prompt, messages, answer))
            return
        work = asyncio.to_thread(next_prefix, self._encoder, prompt, messages, answer)

        async def tell_later() -> None:
            self._send(ended, await work)

        task = asyncio.create_task(tell_later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, ended: TurnEnded, tokens: list[int] | None) -> None:
        self._engine.turn_ended(msgspec.structs.replace(ended, next_prefix=tokens))
