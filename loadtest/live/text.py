"""Texts of a wanted length in tokens, for servers whose tokenizer nobody here has."""

from __future__ import annotations

from random import Random

WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word "
    "business issue side kind head house service friend father power hour game line end member law "
    "car city name team minute idea body information back parent face others level office door "
    "health person art war history party result change morning reason research girl guy moment air "
    "teacher force education foot boy age policy music market sense nation plan college interest "
    "death course someone experience behind reach local six effect field letter paper north"
).split()
"""Common ones: most vocabularies have a token for each."""

CORPUS_WORDS = 1 << 16
HEAD_WORDS = 8
"""At the start of every text, from its key alone: texts of different keys differ from there on."""
TOKENS_PER_WORD = 1.3
"""Where a server does not count tokens."""


class Texts:
    """Makes texts; the same key and length make the same text, a longer one begins with it."""

    def __init__(self, tokens_per_word: float = TOKENS_PER_WORD) -> None:
        """tokens_per_word: measured by asking the server (`loadtest.live.service`)."""
        self.tokens_per_word = tokens_per_word
        # Choosing 50,000 words one by one would hold every stream up for tens of milliseconds.
        self._corpus = Random(0).choices(WORDS, k=CORPUS_WORDS)

    def text(self, tokens: int, *key: object) -> str:
        """Returns a text of about so many tokens, one word at least."""
        return words(self._corpus, max(1, round(tokens / self.tokens_per_word)), *key)


def words(corpus: list[str], count: int, *key: object) -> str:
    """Returns `count` words: some chosen by the key, then a stretch of the corpus."""
    random = Random(repr(key))
    head = random.choices(WORDS, k=HEAD_WORDS)[:count]
    start = random.randrange(len(corpus))
    left = count - len(head)
    stretch = corpus[start : start + left]
    while len(stretch) < left:
        stretch += corpus[: left - len(stretch)]
    return " ".join(head + stretch)
