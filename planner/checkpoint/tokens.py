"""Tokens by their text: which rows of an embedding a person means who writes ` Paris`.

Asking a tokenizer to encode "Paris" is the wrong way. Tokenizers in the manner of sentencepiece put a space before
every text, so that they answer ▁Paris, which is the token of " Paris"; others lower or compose letters first. So a text
is spelled the way the vocabulary spells it (`spelling.py`), and looked up as it stands. A text that is no token is cut
by the tokenizer's own model behind a front that only spells, and the pieces count only if they give back the text, byte
for byte.

tokenizer.json is a stranger's file, read by a library that may raise anything and may panic. Whatever it does becomes
a `TokensUnresolved`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.checkpoint.header import open_regular
from planner.checkpoint.spelling import Spelling, spelling_of
from planner.records import Record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TokenChoice", "TokenMeaning", "TokensUnresolved", "find_tokens"]

Spaces = Literal["as_written", "with", "without", "both"]

_FILE = "tokenizer.json"
_LARGEST = 64 * 2**20
_LONGEST = 256
_MOST_SHOWN = 16


class TokensUnresolved(ValueError):
    """Some text or id stands for no token, or not for one. `hint` says what to do instead."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class TokenMeaning(Record):
    """One token that was meant, and the one it is easily confused with."""

    asked: str | None
    """The text it was asked for by; null if by its id."""
    id: int
    """Its number: the row of the embedding."""
    piece: str | None
    """How the vocabulary spells it, such as ĠParis or ▁Paris; null for a row that no token has."""
    text: str | None
    """The text it stands for; bytes that are no text of their own are written as escapes."""
    sibling_text: str | None = None
    """The same text with a leading space if it has none, else without it; null where that is no single token."""
    sibling_id: int | None = None
    """The number of that token, which was not meant unless it is listed itself."""


class TokenChoice(Record):
    """Which tokens some texts and ids mean."""

    ids: tuple[int, ...]
    """Their numbers, each once, in the order in which they were asked for."""
    tokens: tuple[TokenMeaning, ...]
    """The same one by one, for a person to see which were meant."""


def find_tokens(
    folder: Path,
    *,
    texts: Sequence[str] = (),
    ids: Sequence[int] = (),
    each: bool = False,
    spaces: Spaces = "as_written",
    rows: int | None = None,
) -> TokenChoice:
    """The tokens that `texts` and `ids` mean to the tokenizer of the checkpoint in `folder`.

    A text must be one token; with `each` it may be several, which are then all meant. `spaces` chooses among the text
    as written, with one leading space, without it, and both, which must then both be there. `rows` is the number of
    rows of the embedding: an id beyond it is an error, one below it that no token has is not. Raises
    `TokensUnresolved`, with everything that is wrong in one message.
    """
    vocabulary = _load(folder / _FILE)
    problems: list[tuple[str, str]] = []
    found: list[TokenMeaning] = []
    for text in texts:
        for variant in _variants(text, spaces):
            try:
                found += vocabulary.meanings(variant, each=each)
            except TokensUnresolved as error:
                problems.append((str(error), error.hint))
    for number in ids:
        meaning = vocabulary.meaning(number, None)
        if meaning.piece is None and rows is None:
            problems.append((f"no token has the id {number}", f"there are {vocabulary.size:,} tokens"))
        found.append(meaning)
    beyond = {meaning.id: meaning for meaning in found if rows is not None and meaning.id >= rows}
    problems += [
        (f"the token {number} ({meaning.text!r:.80}) has no row: there are {rows:,}", "name tokens that have one")
        for number, meaning in beyond.items()
    ]
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN:,} more" if len(problems) > _MOST_SHOWN else ""
        raise TokensUnresolved("; ".join(said for said, _ in problems[:_MOST_SHOWN]) + more, hint=problems[0][1])
    first = {meaning.id: meaning for meaning in reversed(found)}
    kept = tuple(dict.fromkeys(meaning.id for meaning in found))
    return TokenChoice(ids=kept, tokens=tuple(first[number] for number in kept))


def _variants(text: str, spaces: Spaces) -> tuple[str, ...]:
    without = text.removeprefix(" ")
    return {
        "as_written": (text,),
        "with": (" " + without,),
        "without": (without,),
        "both": (without, " " + without),
    }[spaces]


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer whose front only spells."""

    path: Path
    tokenizer: Tokenizer
    spelling: Spelling | None
    """None where the file spells in a way that is not understood here: then only ids are."""
    added: dict[str, int]
    """The tokens that stand outside the model's vocabulary and mean their own text, such as <|im_end|>."""
    size: int

    def meanings(self, text: str, *, each: bool) -> list[TokenMeaning]:
        """The one token of `text`, or with `each` all of its tokens. Raises `TokensUnresolved`."""
        if self.spelling is None:
            raise TokensUnresolved(
                f"how {self.path} spells texts is not understood, so {text!r:.80} cannot be looked up",
                hint="name the tokens by `ids`",
            )
        if not text or len(text) > _LONGEST:
            raise TokensUnresolved(f"a text of {len(text)} characters", hint=f"1 to {_LONGEST} characters")
        if self.spelling.spaceless and text.startswith(" "):
            raise TokensUnresolved(f"no token here begins with a space, as {text!r} does", hint="leave the space out")
        if (number := self.id_of(text)) is not None:
            return [self.meaning(number, text)]
        pieces = self.pieces(text)
        read = b"".join(self.read(number) for number in pieces)
        shown = ", ".join(f"{self.shown(number)!r} (id {number})" for number in pieces[:_MOST_SHOWN])
        shown += f" and {len(pieces) - _MOST_SHOWN} more" if len(pieces) > _MOST_SHOWN else ""
        if not pieces or not self.spelling.same(text, read):
            made = f"the tokenizer makes {shown} of it, which is another text" if pieces else "nothing is left of it"
            raise TokensUnresolved(
                f"{text!r} is no token: {made}", hint=self.instead(text, "name the tokens by `ids`, or another text")
            )
        if len(pieces) > 1 and not each:
            raise TokensUnresolved(
                f"{text!r} is {len(pieces)} tokens: {shown}",
                hint=self.instead(text, "name one of them, or ask for all with `each`"),
            )
        return [self.meaning(number, text) for number in pieces]

    def instead(self, text: str, otherwise: str) -> str:
        """The sibling, where that is one token; and what the vocabulary's own spelling would mean."""
        assert self.spelling is not None, "texts are refused without one"
        sibling = _sibling(text)
        if sibling and (number := self.id_of(sibling)) is not None:
            return f"{sibling!r} is one token (id {number}); or {otherwise}"
        if (number := self.tokenizer.token_to_id(text)) is not None:
            return f"{text!r} is how the vocabulary spells {self.shown(number)!r} (id {number}): write that"
        return otherwise

    def id_of(self, text: str) -> int | None:
        """The token that stands for exactly this text."""
        if text in self.added:
            return self.added[text]
        assert self.spelling is not None, "texts are refused without one"
        piece = self.spelling.spell(text)
        exact = piece not in self.added and self.spelling.same(text, self.spelling.read(piece))
        return self.tokenizer.token_to_id(piece) if exact else None

    def pieces(self, text: str) -> list[int]:
        """The tokens that the model cuts `text` into."""
        with _guarded(self.path):
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def read(self, number: int) -> bytes:
        piece = self.tokenizer.id_to_token(number) or ""
        return piece.encode() if self.spelling is None or piece in self.added else self.spelling.read(piece)

    def shown(self, number: int) -> str:
        return self.read(number).decode(errors="backslashreplace")

    def meaning(self, number: int, asked: str | None) -> TokenMeaning:
        """The token `number`, with its sibling."""
        piece = self.tokenizer.id_to_token(number)
        if piece is None:
            return TokenMeaning(asked=asked, id=number, piece=None, text=None)
        text = self.shown(number)
        sibling = _sibling(text) if self.spelling is not None else None
        other = self.id_of(sibling) if sibling else None
        return TokenMeaning(
            asked=asked,
            id=number,
            piece=piece,
            text=text,
            sibling_text=sibling if other is not None else None,
            sibling_id=other,
        )


def _sibling(text: str) -> str:
    return text[1:] if text.startswith(" ") else " " + text


def _load(path: Path) -> _Vocabulary:
    content = _read(path)
    with _guarded(path):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(content)
        spelling = spelling_of(tokenizer)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        return _Vocabulary(path, tokenizer, spelling, added, tokenizer.get_vocab_size())


def _read(path: Path) -> str:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST:
                raise TokensUnresolved(
                    f"{path} has {size:,} bytes; at most {_LARGEST:,} are read", hint="is it the tokenizer?"
                )
            return file.read(size).decode()
    except FileNotFoundError:
        raise TokensUnresolved(
            f"there is no {path}, which says what the tokens are",
            hint=f"put the {_FILE} of the model there (AutoTokenizer.save_pretrained), or choose rows by number",
        ) from None
    except OSError as error:
        raise TokensUnresolved(f"{path}: {error.strerror}", hint="check its permissions") from None
    except UnicodeDecodeError:
        raise TokensUnresolved(f"{path} is not UTF-8 text", hint="fetch it again") from None


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Turns whatever the library raises into a `TokensUnresolved`; a panic of it derives from BaseException only."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokensUnresolved(
            f"{path} cannot be used: {type(error).__name__}: {str(error)[:200]}", hint="fetch the tokenizer again"
        ) from None
