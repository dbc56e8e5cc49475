"""The tags of tool calls: as trained, and as models write them when they forget the marker."""

from __future__ import annotations

from typing import NamedTuple

from api.chat.markers import DSML, THINK_END
from api.chat.scanner import Scanner

CALLS_OPEN = f"<{DSML}function_calls>"
CALLS_CLOSE = f"</{DSML}function_calls>"
INVOKE_OPEN = f'<{DSML}invoke name="'
INVOKE_CLOSE = f"</{DSML}invoke>"
PARAMETER_OPEN = f'<{DSML}parameter name="'
PARAMETER_CLOSE = f"</{DSML}parameter>"
SEPARATOR = "\n\n"
"""Between content and calls; part of neither."""


class Tags(NamedTuple):
    """Every spelling of each tag that is read as markup, and the searches made of them."""

    calls_close: tuple[str, ...]
    invoke_open: tuple[str, ...]
    invoke_close: tuple[str, ...]
    parameter_open: tuple[str, ...]
    inside_call: tuple[str, ...]
    text: Scanner
    """What ends content."""
    between_calls: Scanner
    broken_call: Scanner
    json_body: Scanner
    """What ends arguments that are written as JSON."""


def _tags(*spellings: str) -> Tags:
    """spellings: what stands for the marker."""

    def spelled(tag: str) -> tuple[str, ...]:
        return tuple(tag.replace(DSML, marker) for marker in spellings)

    calls_close, invoke_open = spelled(CALLS_CLOSE), spelled(INVOKE_OPEN)
    invoke_close, parameter_open = spelled(INVOKE_CLOSE), spelled(PARAMETER_OPEN)
    openers = (*spelled(CALLS_OPEN), *invoke_open)
    return Tags(
        calls_close=calls_close,
        invoke_open=invoke_open,
        invoke_close=invoke_close,
        parameter_open=parameter_open,
        inside_call=(*parameter_open, *invoke_close, *calls_close),
        text=Scanner(THINK_END, *(SEPARATOR + opener for opener in openers), *openers),
        between_calls=Scanner(*invoke_open, *calls_close),
        broken_call=Scanner(*invoke_close, *invoke_open, *calls_close),
        json_body=Scanner(*invoke_close, *calls_close),
    )


STRICT = _tags(DSML)
LENIENT = _tags(DSML, "")

TEXT_ALONE = Scanner(THINK_END)
"""What ends reasoning, and is noise in content, where no tools are offered."""
VALUES = {
    PARAMETER_OPEN: Scanner(PARAMETER_CLOSE),
    PARAMETER_OPEN.replace(DSML, ""): Scanner(PARAMETER_CLOSE, PARAMETER_CLOSE.replace(DSML, "")),
}
"""What ends a value, by the tag that opened it: a value may hold a tag in another spelling."""
