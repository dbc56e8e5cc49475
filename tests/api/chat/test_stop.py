import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chat.stop import StopMatcher

STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces) + matcher.finish()
    return shown, matcher.matched


@given(STOPS, st.lists(st.text(alphabet="abc\n", max_size=5), max_size=10))
def test_pieces_do_not_matter(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    shown, matched = run(stops, pieces)
    assert (shown, matched) == run(stops, [text])
    if matched is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + matched)
        assert not any(stop in shown for stop in stops)


def test_text_is_held_only_while_it_may_become_a_stop() -> None:
    matcher = StopMatcher(["###"])
    assert [matcher.feed(piece) for piece in ("a#", "#b", "##", "#", "more")] == [
        *("a", "##b", "", "", "")
    ]
    assert matcher.matched == "###"
    assert matcher.finish() == ""


def test_finish_releases_what_was_held() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.feed("a##") == "a"
    assert matcher.finish() == "##"


def test_long_stops_are_cheap() -> None:
    """As a regular expression these took half a minute to compile."""
    stops = [letter * 100_000 for letter in "abc"]
    assert run(stops, ["a" * 99_999, "b"]) == ("a" * 99_999 + "b", None)
    assert run(stops, ["x", "a" * 99_999, "ab"]) == ("x", "a" * 100_000)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
