"""Token ids to text, one at a time, never half a character."""

import codecs
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer


class TokenBytes:
    """The bytes of single tokens of a byte-level vocabulary. Safe to share between choices."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            token_id: token.content
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._byte_of_character = _byte_level_alphabet()
        self._known: dict[int, bytes] = {}
        """Of tokens that were asked for; at most the vocabulary."""
        self._texts: dict[int, str | None] = {}

    def of(self, token_id: int) -> bytes:
        """Returns the bytes the token stands for, which need not be whole characters.

        Raises KeyError for an id outside the vocabulary.
        """
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read(token_id)
        return known

    def text_of(self, token_id: int) -> str | None:
        """Returns the token's text, None where its bytes alone are not whole characters.

        Raises KeyError for an id outside the vocabulary.
        """
        try:
            return self._texts[token_id]
        except KeyError:
            data = self.of(token_id)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = None
        self._texts[token_id] = text
        return text

    def _read(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            raise KeyError(f"token id {token_id} is outside the vocabulary")
        return bytes(self._byte_of_character[character] for character in token)


class Detokenizer:
    """Decodes one choice. Special strings stay in the text: the output parser reads them.

    ``silent_ids`` have no text: the tokens that end a generation. Nor do ids beyond the vocabulary,
    which a padded model can draw. Every token costs the same: tokenizers' own DecodeStream decodes
    everything it holds again at each token, and bytes that are no UTF-8 make it hold all of them.
    """

    def __init__(self, token_bytes: TokenBytes, silent_ids: Collection[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._silent_ids = frozenset(silent_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waits = False
        """A character is incomplete so far."""

    def feed(self, token_ids: Iterable[int]) -> str:
        """Returns the text that these tokens complete; the bytes of a split character wait."""
        text = self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))
        self._waits = bool(self._decoder.getstate()[0])
        return text

    def at_once(self, token_id: int) -> str | None:
        """Returns what feeding one token returns, where that needs no other token; else None.

        Nothing waits before or after it, so there is nothing to keep of it: it need not be fed.
        """
        if self._waits or token_id in self._silent_ids:
            return None
        try:
            return self._token_bytes.text_of(token_id)
        except KeyError:
            return None

    def finish(self) -> str:
        """Returns what is left when generation ends, with U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._silent_ids:
            return b""
        try:
            return self._token_bytes.of(token_id)
        except KeyError:
            return b""


def _byte_level_alphabet() -> dict[str, int]:
    """Returns character -> byte of byte-level BPE.

    Printable Latin-1 characters stand for themselves, other bytes for characters from U+0100 on.
    Source: GPT-2's byte-level BPE.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return alphabet
