from hypothesis import given
from hypothesis import strategies as st

from api.chat.scanner import Scanner

WORDS = st.lists(st.text(alphabet="ab<^]", min_size=1, max_size=5), min_size=1, max_size=4)
TEXT = st.text(alphabet="ab<^]", max_size=30)


def first_complete(text: str, words: list[str]) -> tuple[int, str] | None:
    """Brute force: the first end at which any word is complete, the longest of those there."""
    for end in range(1, len(text) + 1):
        for word in sorted(words, key=len, reverse=True):
            if text[:end].endswith(word):
                return end - len(word), word
    return None


@given(WORDS, TEXT)
def test_scan_equals_brute_force(words: list[str], text: str) -> None:
    border, terminal = Scanner(*words).scan(text)
    expected = first_complete(text, words)
    if expected:
        assert (border, terminal) == expected
    else:
        assert terminal is None
        suffixes = [text[start:] for start in range(len(text))]
        held = [s for s in suffixes if any(word.startswith(s) for word in words)]
        assert text[border:] == (held[0] if held else "")


@given(WORDS, TEXT, TEXT)
def test_settled_text_stays_settled(words: list[str], text: str, more: str) -> None:
    scanner = Scanner(*words)
    border, terminal = scanner.scan(text)
    later_border, later_terminal = scanner.scan(text + more)
    assert later_border >= border
    if terminal:
        assert (later_border, later_terminal) == (border, terminal)


def test_nothing_to_find() -> None:
    assert Scanner().scan("text") == (4, None)


def test_start_is_respected() -> None:
    assert Scanner("ab").scan("ab ab", 1) == (3, "ab")
