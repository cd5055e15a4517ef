"""Texts to measure on: documents out of a .jsonl, .json or .txt file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner import strict_json
from planner.errors import FileUnreadable, TextInvalid

__all__ = ["load_documents", "parse_documents", "read_text_file"]

_SHOWN = 10
_FORMATS = (".jsonl", ".json", ".txt")


def load_documents(path: Path) -> tuple[str, ...]:
    """Read the documents of one text file, in the order of the file.

    `.jsonl` holds one object with a string `text` a line (other keys are ignored, blank lines are skipped), `.json` one
    list of strings, `.txt` documents separated by blank lines. The file is UTF-8.

    Raises `FileUnreadable` when the file is missing or no UTF-8, and `TextInvalid`, naming lines, when its content is
    not that: an unknown ending, no document at all, an empty document.
    """
    return parse_documents(read_text_file(path).decode("utf-8-sig"), path)


def read_text_file(path: Path) -> bytes:
    """The bytes of a UTF-8 file. Raises `FileUnreadable` when it is missing, unreadable or no UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileUnreadable(
            f"cannot read {path}: {error.strerror or error}",
            hint="check the path; in a suite or a pipeline it is relative to that file",
        ) from None
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileUnreadable(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}", hint="save the file as UTF-8"
        ) from None
    return data


def parse_documents(text: str, path: Path) -> tuple[str, ...]:
    """As `load_documents`, from text that was read already; `path` gives the format and a name for messages."""
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise TextInvalid(f"{path} is none of {', '.join(_FORMATS)}", hint="name the file by its format")
    documents: list[str] = []
    problems: list[str] = []
    found = {".jsonl": _json_lines, ".json": _json_list, ".txt": _paragraphs}[ending](text)
    for place, document in found:
        if isinstance(document, _Problem):
            problems.append(f"{place}: {document}")
        elif not document.strip():
            problems.append(f"{place}: an empty document")
        else:
            documents.append(document)
    if problems:
        more = len(problems) - _SHOWN
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise TextInvalid(f"{path}: {shown}", hint="every document is a text that is not empty")
    if not documents:
        raise TextInvalid(f"{path} holds no document", hint="add documents, or name another file")
    return tuple(documents)


class _Problem(str):
    """What is wrong in place of a document."""

    __slots__ = ()


def _json_lines(text: str) -> Iterator[tuple[str, str | _Problem]]:
    # Not splitlines(): U+2028 and its like end a line there, but may stand raw inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _text_of(line)


def _text_of(line: str) -> str | _Problem:
    try:
        value: Any = strict_json.loads(line)
    except strict_json.JsonRefused as error:
        return _Problem(f"not JSON ({error})")
    document = value.get("text") if isinstance(value, dict) else None
    return document if isinstance(document, str) else _Problem('not an object with a string "text"')


def _json_list(text: str) -> Iterator[tuple[str, str | _Problem]]:
    try:
        value: Any = strict_json.loads(text)
    except strict_json.JsonRefused as error:
        yield "the file", _Problem(f"not JSON ({error})")
        return
    if not isinstance(value, list):
        yield "the file", _Problem("not a list of strings")
        return
    for number, document in enumerate(value, start=1):
        yield f"item {number}", document if isinstance(document, str) else _Problem("not a string")


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    for number, document in enumerate(re.split(r"\n(?:[ \t]*\n)+", text.replace("\r\n", "\n")), start=1):
        if document.strip():
            yield f"document {number}", document.strip("\n")
