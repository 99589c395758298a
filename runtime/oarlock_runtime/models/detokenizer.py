"""From token ids back to text, a token at a time. Runs in the server process, once for every streamed token.

Every tokenizer we read spells a token as bytes, so decoding is a table look-up and an incremental UTF-8 decoder, which
holds back a character until all of its bytes have come.
"""

import codecs
from collections.abc import Callable, Sequence


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level BPE writes the 256 bytes, with their bytes.

    Printable Latin-1 stands for itself; the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()
CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
BYTE_PIECES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def spell_byte_level(token: str) -> bytes:
    """Bytes of a byte-level BPE token (GPT-2 and after)."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def spell_piece(token: str) -> bytes:
    """Bytes of a SentencePiece token: U+2581 is a space, <0x0A> a byte."""
    return BYTE_PIECES.get(token) or token.replace("\u2581", " ").encode("utf-8", "replace")


class ByteTable:
    """The bytes of every token id, worked out when first asked for. Ids outside the vocabulary have none."""

    def __init__(self, size: int, spell: Callable[[int], bytes]) -> None:
        self._known: list[bytes | None] = [None] * size
        self._spell = spell

    def __getitem__(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._known):
            return b""
        found = self._known[token_id]
        if found is None:
            found = self._known[token_id] = self._spell(token_id)
        return found

    def join(self, ids: Sequence[int]) -> bytes:
        if len(ids) == 1:
            return self[ids[0]]
        return b"".join([self[token_id] for token_id in ids])


class StreamDecoder:
    """Text of one sequence as its tokens come.

    What all pushes and the final flush return is, joined, the same as decoding all ids at once; no push ends within a
    character. Bytes that can't be UTF-8 become U+FFFD.
    """

    def __init__(self, table: ByteTable, strip_first_space: bool = False) -> None:
        self._table = table
        self._held = b""  # the beginning of a character
        self._strip = strip_first_space

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; may be empty."""
        data = self._held + self._table.join(ids)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return self._stripped(text) if self._strip else text

    def flush(self) -> str:
        """The end of the text: what was held back, as U+FFFD. The decoder may be used for a new sequence after."""
        text, _ = codecs.utf_8_decode(self._held, "replace", True)
        self._held = b""
        return self._stripped(text)

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
