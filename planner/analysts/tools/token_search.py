"""find_tokens: which tokens a text is to this checkpoint's own tokenizer, with and without a space before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from planner.analysts.aliases import quoted
from planner.analysts.tools.base import AgentTool, Bench
from planner.analysts.tools.meanings import escaped, token_text
from planner.checkpoint import TokenMeaning, TokensUnresolved, find_tokens
from planner.records import Record

__all__ = ["FindTokens"]

_MOST, _LONGEST = 8, 80
_MOST_PIECES = 24


class Texts(Record):
    """Which texts."""

    texts: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(min_length=1, max_length=_MOST)
    """1 to 8 texts of at most 64 characters; a leading space counts."""


class FindTokens(AgentTool[Texts]):
    """The tokens of some texts by id, each text as written and with or without a leading space. A plan names tokens by
    `texts` or `ids` in the elements of a target."""

    name: ClassVar[str] = "find_tokens"
    Arguments: ClassVar[type[Record]] = Texts
    less: ClassVar[str] = "name fewer texts"

    def run(self, arguments: Texts, bench: Bench) -> str:
        """Two lines for each text."""
        folder = bench.brief.checkpoint.path
        texts = list(dict.fromkeys(arguments.texts))
        try:  # at once where every text is one token, because each call reads the tokenizer
            found = find_tokens(folder, texts=texts).tokens
        except TokensUnresolved:
            spellings = list(dict.fromkeys(one for text in texts for one in (text, _sibling(text)) if one))
            return "\n".join(_cut(one, bench) for one in spellings)
        by_text = {token.asked: token for token in found}
        return "\n".join(line for text in texts for line in _pair(by_text[text], text, bench))


def _sibling(text: str) -> str:
    """With one leading space, or without it."""
    return text[1:] if text.startswith(" ") else f" {text}"


def _pair(token: TokenMeaning, text: str, bench: Bench) -> Iterator[str]:
    """A text that is one token, and its sibling."""
    yield f"{escaped(text, longest=_LONGEST)} is one token: id {token.id}, piece {_piece(token)}"
    if token.sibling_id is not None:
        yield f"{escaped(_sibling(text), longest=_LONGEST)} is one token: id {token.sibling_id}"
    elif sibling := _sibling(text):
        yield _cut(sibling, bench)


def _cut(text: str, bench: Bench) -> str:
    """What one text is."""
    try:
        found = find_tokens(bench.brief.checkpoint.path, texts=(text,), each=True).tokens
    except TokensUnresolved as error:
        return f"{escaped(text, longest=_LONGEST)} cannot be looked up: {quoted(str(error), longest=300)}"
    if len(found) == 1 and found[0].text == text:
        return f"{escaped(text, longest=_LONGEST)} is one token: id {found[0].id}, piece {_piece(found[0])}"
    return f"{escaped(text, longest=_LONGEST)} is several tokens, each once: {_listed(found)}"


def _listed(tokens: Sequence[TokenMeaning]) -> str:
    said = [f"{token_text(token.text, token.id)} id {token.id}" for token in tokens[:_MOST_PIECES]]
    return ", ".join(said) + (f" and {len(tokens) - _MOST_PIECES} more" if len(tokens) > _MOST_PIECES else "")


def _piece(token: TokenMeaning) -> str:
    return "none" if token.piece is None else escaped(token.piece)
