"""The front matter of a model card: the YAML block at its top, in which a hub looks for `base_model`.

One key is set and one tag is added; every other line stays as it is, byte for byte. A YAML library would write the
block anew and lose comments, quotes and order. So the top level of the block is read here, line by line, with just as
much of YAML as model cards use: keys, plain and quoted scalars, block scalars, lists, flow collections. A block that
holds anything else (a flow mapping as a whole, keys in several lines, an anchor that would go away) is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["line_break", "with_base_model"]

_OPENING = re.compile(r"\ufeff?[ \t\r\n]*---[ \t]*(?:\r\n|\n|\r)")
_CLOSING = re.compile(r"(?<=[\r\n])(?:---|\.\.\.)[ \t]*(?=\r|\n|\Z)")
_SPACE = " \t\r\n"
"""White space as YAML has it: no more of it, and a no-break space is a character as any other."""
_BREAK = re.compile(r"\r\n|\n|\r")
_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\n|\r|\Z)")
_DASHES = re.compile(r"(?:-[ ]+)*(?:-(?=[\r\n]|\Z))?")
_KEY = re.compile(
    r"""(?:"(?P<double>[^"\\\r\n]*)"|'(?P<single>[^'\r\n]*)'"""
    r"""|(?P<plain>[^ \t\r\n,\[\]{}#&*!|>'"%@`?:-]"""
    r"""(?:[^ \t\r\n:#]|:(?=[^ \t\r\n])|(?<=[^ \t\r\n])\#|[ ]+(?=[^ \t\r\n:#]))*))"""
    r"""[ \t]*:(?=[ \t\r\n]|\Z)"""
)
_PROPERTIES = re.compile(r"(?:[&!][^ \t\r\n,\[\]{}]*[ \t]+)*(?:[&!][^ \t\r\n,\[\]{}]*(?=[\r\n]|\Z))?")
_BLOCK_SCALAR = re.compile(r"[|>][0-9+-]*[ \t]*(?:[ \t]#[^\r\n]*)?(?=[\r\n]|\Z)")
_REST = re.compile(r"[ \t]*(?:(?<=[ \t])#[^\r\n]*)?(?=[\r\n]|\Z)")
_PLAIN = re.compile(r"(?:[^ \t\r\n#]|(?<=[^ \t\r\n])\#|[ \t]+(?=[^ \t\r\n#]))*")
_ANCHOR = re.compile(r"(?:^|[ \t\r\n\[{,])&\S")
_PROSE = re.compile(r"[\w*>|`]")
_UNUSUAL_BREAK = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_AS_IT_IS = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass
class _Entry:
    """One key of the block; places are offsets in it."""

    key: str
    colon: int
    """Behind the colon."""
    value: int
    """Where the value begins, if it begins on the line of the key."""
    end: int
    """Behind the last character of the value."""
    style: str
    """First character of the value, empty where it begins on a later line."""
    lines: int = 1
    """How many lines, or values of several lines, it has that say something."""


def with_base_model(card: str, base: str, tag: str) -> str:
    """The model card with `base_model: base` and `tag` among its tags, in a new front matter if it has none.

    Where the front matter cannot be read with certainty the card comes back unchanged; a list of tags that is not a
    plain one keeps its tags.
    """
    place = _front_matter(card)
    if place is None:
        mark = "\ufeff" if card.startswith("\ufeff") else ""
        end = line_break(card)
        lines = ("---", f"base_model: {_scalar(base)}", "tags:", f"- {tag}", "---", "")
        return mark + end.join(lines) + (end if card.strip("\ufeff\r\n") else "") + card[len(mark) :]
    block = _set(card[slice(*place)], base, tag, line_break(card))
    return card if block is None else card[: place[0]] + block + card[place[1] :]


def _front_matter(card: str) -> tuple[int, int] | None:
    """Where the block between the lines `---` begins and ends; None where there is none, or two rules around prose."""
    opening = _OPENING.match(card)
    closing = _CLOSING.search(card, opening.end()) if opening else None
    if opening is None or closing is None:
        return None
    for line in _LINE.finditer(card, opening.end(), closing.start()):
        if (text := line[1].strip(" \t")) and not text.startswith("#"):
            return None if _PROSE.match(text) and not _KEY.match(text) else (opening.end(), closing.start())
    return opening.end(), closing.start()


def line_break(text: str) -> str:
    """The line break that a text uses first; a line feed where it has none."""
    found = _BREAK.search(text)
    return found[0] if found else "\n"


def _set(block: str, base: str, tag: str, end_of_line: str) -> str | None:
    """The block with key and tag; None where it cannot be read with certainty."""
    entries = None if _UNUSUAL_BREAK.search(block) else _entries(block)
    if entries is None:
        return None
    bases = [entry for entry in entries if entry.key == "base_model"]
    margin = " " * (_indent(block, entries[0]) if entries else 0)
    mentioned = re.findall(rf"(?<![^\r\n]){margin}[\"']?base_model[\"']?[ \t]*:", block)
    if any(_ANCHOR.search(block, entry.colon, entry.end) for entry in bases) or len(mentioned) != len(bases):
        return None
    changes = [_replaced(entry, base) for entry in bases]
    # What is new goes to the top: the end may belong to a block scalar, whose value would change.
    new = "" if bases else f"{margin}base_model: {_scalar(base)}{end_of_line}"
    tags = [entry for entry in entries if entry.key == "tags"]
    if not tags:
        new += f"{margin}tags:{end_of_line}{margin}- {tag}{end_of_line}"
    elif len(tags) == 1 and (added := _added(block, tags[0], tag, end_of_line)):
        changes.append(added)
    for begin, end, text in sorted(changes, reverse=True):
        block = block[:begin] + text + block[end:]
    return new + block


def _entries(block: str) -> list[_Entry] | None:
    """The keys of the top level, in order; None where the block is not a plain block mapping."""
    found: list[_Entry] = []
    indent = at = 0
    while at < len(block):
        line = _LINE.match(block, at)
        assert line is not None
        text = line[1].lstrip(" ")
        here, at = at + len(line[1]) - len(text), line.end()
        if not text.strip(" \t") or text.startswith("#"):
            continue
        depth = here - line.start()
        indent = depth if not found else indent
        dashes = _DASHES.match(block, here)
        assert dashes is not None
        key = _KEY.match(block, dashes.end())
        top = depth == indent and not dashes[0]
        if depth < indent or (top and key is None) or (not top and not found):
            return None
        if dashes[0] and depth == indent and found[-1].style not in ("", "-"):
            return None
        value = _value_at(block, key.end() if key else dashes.end())
        if value is None:
            return None
        begin, end = value
        if block[begin : begin + 1] in ("|", ">"):
            column = (key.start() if key else dashes.start() + max(dashes[0].rfind("-"), 0)) - line.start()
            end = _block_scalar_end(block, end, column)
        if top and key:
            name = next(part for part in (key["double"], key["single"], key["plain"]) if part is not None)
            style = block[begin : begin + 1] if end > begin else ""
            found.append(_Entry(name, key.end(), begin, end, style))
        else:
            found[-1].lines += 1
            found[-1].end = end
            found[-1].style = found[-1].style or (dashes[0][:1] or "?")
        at = _next_line(block, end)
    return found


def _value_at(block: str, at: int) -> tuple[int, int] | None:
    """Where the value on this line begins, and where it ends; a block scalar ends with its first line."""
    while block[at : at + 1] in (" ", "\t"):
        at += 1
    properties = _PROPERTIES.match(block, at)
    begin = properties.end() if properties else at
    first = block[begin : begin + 1]
    if first in ("|", ">"):
        header = _BLOCK_SCALAR.match(block, begin)
        return (begin, header.end()) if header else None
    if first == "#" and block[begin - 1 : begin] in (" ", "\t"):
        return begin, begin
    if first and first in "\"'[{":
        end = _quoted_end(block, begin) if first in "\"'" else _flow_end(block, begin)
        if end is None or not _REST.match(block, end):
            return None
        return begin, end
    plain = _PLAIN.match(block, begin)
    return begin, plain.end() if plain else begin


def _block_scalar_end(block: str, at: int, column: int) -> int:
    """The end of the last line of a block scalar: each is blank or further in than `column`."""
    end, at = at, _next_line(block, at)
    while at < len(block):
        line = _LINE.match(block, at)
        assert line is not None
        text = line[1]
        if text.strip(" "):
            if len(text) - len(text.lstrip(" ")) <= column:
                break
            end = at + len(text)
        at = line.end()
    return end


def _quoted_end(block: str, at: int) -> int | None:
    """Behind the quoted scalar that begins at `at`."""
    pattern = r'"(?:[^"\\]|\\.)*"' if block[at] == '"' else r"'(?:[^']|'')*'(?!')"
    found = re.compile(pattern, re.DOTALL).match(block, at)
    return found.end() if found else None


def _flow_end(block: str, at: int) -> int | None:
    """Behind the flow collection that begins at `at`."""
    depth, before = 0, ""
    while at < len(block):
        character = block[at]
        if character in "\"'" and before in "[{,:":
            end = _quoted_end(block, at)
            if end is None:
                return None
            at, before = end, character
            continue
        if character == "#" and block[at - 1] in _SPACE:
            at = _next_line(block, at)
            continue
        depth += (character in "[{") - (character in "]}")
        if depth == 0:
            return at + 1
        before = before if character in _SPACE else character
        at += 1
    return None


def _next_line(block: str, at: int) -> int:
    found = _BREAK.search(block, at)
    return found.end() if found else len(block)


def _indent(block: str, entry: _Entry) -> int:
    line = re.search(r"[^\r\n]*\Z", block[: entry.colon])
    return len(line[0]) - len(line[0].lstrip(" ")) if line else 0


def _replaced(entry: _Entry, base: str) -> tuple[int, int, str]:
    """Begin, end and new text for the value of an entry; a comment behind a value of one line stays."""
    return entry.colon, entry.end if entry.style else entry.colon, f" {_scalar(base)}"


def _added(block: str, entry: _Entry, tag: str, end_of_line: str) -> tuple[int, int, str] | None:
    """Where one more tag goes, and the text for it; None where it is there, or the tags are no plain list."""
    text = block[entry.value : entry.end] if entry.style == "[" else block[entry.colon : entry.end]
    if re.search(rf"(?<![\w-]){re.escape(tag)}(?![\w-])", text):
        return None
    if (
        entry.style == "["
        and entry.lines == 1
        and re.fullmatch(r"\[[^\[\]{}#\"'\r\n]*[^\[\]{}#\"'\r\n, \t\r\n][ ]*\]", text)
    ):
        return entry.end - 1, entry.end - 1, f", {tag}"
    items = re.findall(r"^([ ]*)- +[\w./:@+-][^\r\n]*$", text.replace("\r\n", "\n").replace("\r", "\n"), re.MULTILINE)
    if entry.style == "-" and len(items) == entry.lines - 1 and len(set(items)) == 1:
        return entry.end, _end_of(block, entry.end), f"{_rest_of(block, entry.end)}{end_of_line}{items[0]}- {tag}"
    return None


def _end_of(block: str, at: int) -> int:
    found = _BREAK.search(block, at)
    return found.start() if found else len(block)


def _rest_of(block: str, at: int) -> str:
    """What stands behind a value on its line: a comment."""
    return block[at : _end_of(block, at)]


def _scalar(text: str) -> str:
    """A text as YAML: as it is where nothing in it has a meaning there, else in double quotes."""
    if _AS_IT_IS.fullmatch(text) and text.lower() not in _NOT_TEXT:
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
