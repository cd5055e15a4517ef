"""How the vocabulary of a tokenizer writes texts.

Byte-level vocabularies write each byte as a printable character (a space is Ġ), those of sentencepiece write ▁ for a
space, and others the text itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from planner import strict_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Bytes", "Marked", "Spelling", "Words", "spelling_of"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(Protocol):
    """How a vocabulary writes texts."""

    @property
    def spaceless(self) -> bool:
        """Whether no piece holds a space, so that texts lose theirs."""
        ...

    def spell(self, text: str) -> str:
        """The piece that stands for exactly this text, if there is one."""
        ...

    def read(self, piece: str) -> bytes:
        """The text, as UTF-8, that a piece stands for."""
        ...

    def same(self, text: str, read: bytes) -> bool:
        """Whether the pieces of `text`, read one after the other, give it back."""
        ...


# GPT-2's table: bytes that print as themselves in Latin-1 stay, the others are numbered from 256 on in their order.
_PRINTED = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_LETTER = {byte: chr(byte) for byte in _PRINTED} | {
    byte: chr(256 + place) for place, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)
}
_BYTE_OF = {letter: byte for byte, letter in _LETTER.items()}


class Bytes:
    """Byte-level vocabularies: a printable character for each byte."""

    spaceless = False

    def spell(self, text: str) -> str:
        """The piece for exactly this text."""
        return "".join(_LETTER[byte] for byte in text.encode())

    def read(self, piece: str) -> bytes:
        """The text of a piece, as UTF-8."""
        return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in piece)

    def same(self, text: str, read: bytes) -> bool:
        """Whether `read` is the text."""
        return read == text.encode()


@dataclass(frozen=True)
class Marked:
    """Vocabularies in the manner of sentencepiece: a mark for each space, and perhaps <0x0A> for a byte."""

    mark: str
    bytes_too: bool
    spaceless = False

    def spell(self, text: str) -> str:
        """The piece for exactly this text."""
        return text.replace(" ", self.mark)

    def read(self, piece: str) -> bytes:
        """The text of a piece, as UTF-8."""
        if self.bytes_too and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return piece.replace(self.mark, " ").encode()

    def same(self, text: str, read: bytes) -> bool:
        """Whether `read` is the text."""
        return read == text.replace(self.mark, " ").encode()


@dataclass(frozen=True)
class Words:
    """Vocabularies of words, and of parts of words behind a prefix: spaces are lost."""

    prefix: str
    spaceless: bool

    def spell(self, text: str) -> str:
        """The piece for exactly this text."""
        return text

    def read(self, piece: str) -> bytes:
        """The text of a piece, as UTF-8."""
        return (piece.removeprefix(self.prefix) if self.prefix else piece).encode()

    def same(self, text: str, read: bytes) -> bool:
        """Whether `read` is the text."""
        return read == (text.replace(" ", "") if self.spaceless else text).encode()


_BARE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"},
}


def spelling_of(tokenizer: Tokenizer) -> Spelling | None:
    """How the vocabulary spells; None where that is not understood.

    The tokenizer is given a front that only spells: it adds no space, lowers nothing and composes nothing. Only
    vocabularies of words keep their own, which alone knows where words end. Raises whatever the library raises for a
    file that makes no sense.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # it would cut a text in another way each time
    spelling, front = _understood(tokenizer)
    if front is not None:
        spare = type(tokenizer).from_str(json.dumps(_BARE | front))
        tokenizer.normalizer, tokenizer.pre_tokenizer = spare.normalizer, spare.pre_tokenizer
    return spelling


def _understood(tokenizer: Tokenizer) -> tuple[Spelling | None, dict[str, Any] | None]:
    """The spelling, and a normaliser and a pre-tokenizer to put in the place of the file's; None keeps those."""
    before, cut, after = map(_state, (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder))
    model = tokenizer.model
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    kinds = {part["type"] for part in (*_parts(before), *_parts(cut))}
    marks = _marks(before, cut, after)
    if getattr(model, "end_of_word_suffix", None) or len(marks) > 1 or (marks and "ByteLevel" in kinds):
        return None, None
    if "ByteLevel" in kinds:
        for part in _parts(cut):
            if part["type"] == "ByteLevel":
                part["add_prefix_space"] = False
        spelled = any(part["type"] == "ByteLevel" for part in _parts(before))
        return Bytes(), {"normalizer": {"type": "ByteLevel"} if spelled else None, "pre_tokenizer": cut}
    if marks:
        (mark,) = marks
        split = [part | {"prepend_scheme": "never"} for part in _parts(cut) if part["type"] == "Metaspace"]
        front = {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": mark},
            "pre_tokenizer": split[0] if split else None,
        }
        return Marked(mark, bool(getattr(model, "byte_fallback", False))), front
    words = type(model).__name__ in {"WordLevel", "WordPiece"}
    return (Words(prefix, words), None) if words or not prefix else (None, None)


def _state(part: Any) -> Any:
    """What a normaliser, pre-tokenizer or decoder is made of, as the file has it; None if there is none."""
    return None if part is None else strict_json.loads(part.__getstate__().decode())


def _parts(state: Any) -> Iterator[dict[str, Any]]:
    """Every component in a component, itself included."""
    if isinstance(state, list):
        for item in state:
            yield from _parts(item)
    elif isinstance(state, dict):
        if isinstance(state.get("type"), str):
            yield state
        for item in state.values():
            yield from _parts(item)


def _marks(before: Any, cut: Any, after: Any) -> set[str]:
    """What stands for a space in the vocabulary, as far as the components say: one mark, if they agree."""
    found = {part["replacement"] for part in (*_parts(cut), *_parts(after)) if part["type"] == "Metaspace"}
    found |= {
        part["content"]
        for part in _parts(before)
        if part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"].strip()
    }
    return found
