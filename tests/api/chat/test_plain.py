"""api.chat.plain: text goes through as it is, whatever it looks like."""

from __future__ import annotations

import pytest

from api.chat.events import ContentDelta
from api.chat.parser import Ending
from api.chat.plain import PlainText


def test_text_is_content_at_once() -> None:
    text = PlainText()
    assert text.feed("</think><｜DSML｜function_calls>") == [
        ContentDelta("</think><｜DSML｜function_calls>")
    ]
    assert text.feed("") == []
    assert text.at_once("<think>") is ContentDelta
    assert text.held_characters == 0


@pytest.mark.parametrize(("ending", "reason"), [("stop", "stop"), ("length", "length")])
def test_it_ends_as_the_model_did(ending: Ending, reason: str) -> None:
    text = PlainText()
    assert text.finish(ending) == []
    assert text.finish_reason == reason
