"""Token ids to text, one at a time, never half a character."""

from collections.abc import Collection, Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Decodes one choice. Special strings stay in the text: the output parser reads them.

    ``silent_ids`` have no text: the tokens that end a generation.
    """

    def __init__(self, tokenizer: Tokenizer, silent_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._silent_ids = frozenset(silent_ids)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._held_ids: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> str:
        """Returns the text that these tokens complete; the bytes of a split character wait."""
        parts: list[str] = []
        for token_id in token_ids:
            if token_id in self._silent_ids:
                continue
            self._held_ids.append(token_id)
            text = self._stream.step(self._tokenizer, token_id)
            if text is not None:
                parts.append(text)
                self._held_ids.clear()
        return "".join(parts)

    def finish(self) -> str:
        """Returns what is left when generation ends, with U+FFFD for an unfinished character."""
        text: str = self._tokenizer.decode(self._held_ids, skip_special_tokens=False)
        self._held_ids.clear()
        return text


class TokenBytes:
    """The bytes of single tokens of a byte-level vocabulary, as ``logprobs`` entries list them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            token_id: token.content
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._byte_of_character = _byte_level_alphabet()

    def of(self, token_id: int) -> bytes:
        """Returns the bytes the token stands for, which need not be whole characters.

        Raises KeyError for an id outside the vocabulary.
        """
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            raise KeyError(f"token id {token_id} is outside the vocabulary")
        return bytes(self._byte_of_character[character] for character in token)


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
