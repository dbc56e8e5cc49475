"""A generated turn as the prompts after it will hold it: the same tokens, closed with EOS.

The opener before an assistant message and the EOS behind it are tokens of their own, so no text
around spliced tokens can merge with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.chat.encoding import Encoder
from api.chat.markers import DSML
from api.chat.messages import Written
from api.chat.tags import CALLS_CLOSE, CALLS_OPEN, INVOKE_CLOSE

_TAIL = f"\n{CALLS_CLOSE}"
"""What stands between the last call of a block and EOS."""


def written_turn(encoder: Encoder, token_ids: Sequence[int], in_reasoning: bool) -> Written:
    """Returns the tokens of a turn that holds at least one complete call, cut after its reasoning.

    token_ids: everything sampled, the token that ended it included. in_reasoning: the prompt ended
    in ``<think>``. A turn that was cut behind a complete call is closed as the model would have
    closed it. One that was cut anywhere else has no `rest`, one with role tokens in it nothing.
    """
    ends = encoder.stop_token_ids
    body = list(token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids)
    if any(token_id in ends for token_id in body):
        return Written()
    ended = len(body) < len(token_ids)
    tail = [] if ended else _closing(encoder, body)
    rest_start = 0
    if in_reasoning:
        think_end = encoder.think_end_token_id
        rest_start = body.index(think_end) + 1 if think_end in body else 0
    rest = None if tail is None else (*body[rest_start:], *tail, encoder.eos_token_id)
    return Written(tuple(body[:rest_start]) if in_reasoning else None, rest)


def _closing(encoder: Encoder, body: Sequence[int]) -> list[int] | None:
    """Returns the tokens that are missing behind a complete call; None inside of anything else."""
    text = encoder.tokenizer.decode(list(body), skip_special_tokens=False)
    before, closer, found = text.rpartition(INVOKE_CLOSE)
    if not closer:
        return None
    if CALLS_OPEN not in before:  # a bare call has no block to close
        return [] if not found.strip() else None
    if not _TAIL.startswith(found):
        return None
    opening, marker, rest = _TAIL.removeprefix(found).partition(DSML)
    marked = [encoder.dsml_token_id] if marker else []
    return [*encoder.encode_text(opening), *marked, *encoder.encode_text(rest)]
