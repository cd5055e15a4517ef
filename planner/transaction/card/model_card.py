"""The model card of a changed checkpoint: README.md, with `base_model` and a section that lists the modifications.

The card is made of the card that is there, the plan and what the patch measured, and of nothing else: no time, no user,
no path, no version. So the same base and the same plan give the same bytes on every machine.

What others wrote (the goal, reasons, names of tensors and of the checkpoint) is data. In the section it stands in table
cells, escaped: it can neither leave its cell nor become HTML, an image, a formula or a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from planner.plain_text import plain
from planner.plan import Modification, Plan
from planner.plan.wording import described, target_in_words
from planner.transaction.card.front_matter import line_break, with_base_model
from planner.transaction.types import ReceiptTensor

__all__ = ["CARD", "TAG", "model_card"]

CARD = "README.md"
"""Its name in the checkpoint folder."""
TAG = "model-patch-planner"
"""The tag in the front matter, by which such checkpoints are found on a hub."""

_BEGIN = f"<!-- {TAG}: begin -->"
_END = f"<!-- {TAG}: end -->"
_MARK = re.compile(rb"(?<![^\r\n])<!-- model-patch-planner: (begin|end) -->[ \t]*(?=\r|\n|\Z)")
_MARKUP = re.compile(r"[\\`*\[\]<>#|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_OUT_OF_CODE = re.compile(r"[`|\\]")
_LIKE_A_LINK = re.compile(r"://|www\.|@|(?:mailto|xmpp|tel|javascript|data):", re.IGNORECASE)
_LONGEST = 500
_MOST_TENSORS = 300
_MOST_MODIFICATIONS = 300


def model_card(
    present: bytes | None,
    *,
    plan: Plan,
    modifications: Sequence[Modification],
    tensors: Sequence[ReceiptTensor],
    before: str,
    after: str,
    earlier: Sequence[str] = (),
) -> bytes:
    """The card for the result of a patch.

    `present` are the bytes of README.md as it is, None where there is none. `modifications` are those of the plan that
    were applied, in order; the others were rejected. `tensors` is what the patch did to each tensor, as in the receipt.
    `before` and `after` are the fingerprints of the base and of the result. `earlier` are the goals of the patches
    that were in force already, oldest first.

    The front matter gets `base_model`, the name of the checkpoint that the plan was made for, and the tag `TAG`; it
    keeps every other line. The section between the marks is replaced, or appended; all else stays byte for byte. In a
    card that is not UTF-8 only the section is written.
    """
    base = _name(plan.checkpoint.name)
    lines = list(_section(plan, base, modifications, tensors, before, after, earlier))
    if present is None or not present.strip():
        title = f"# {_cell(base)}, with changed weights"
        card = with_base_model((present or b"").decode(errors="ignore"), base, TAG)
        return (card + "\n" + "\n".join((title, "", *lines)) + "\n").encode()
    try:
        text = present.decode()
    except UnicodeDecodeError:
        text, kept = present.decode("latin-1"), present  # only to see which line break it uses
    else:
        kept = with_base_model(text, base, TAG).encode()
    end = line_break(text).encode()
    return _with_section(kept, end.join(line.encode() for line in lines), end)


def _with_section(card: bytes, section: bytes, end: bytes) -> bytes:
    """The card with the section in the place of the one that it has, or at the end."""
    begin: re.Match[bytes] | None = None
    for mark in _MARK.finditer(card):
        if mark[1] == b"begin":
            begin = mark
        elif begin is not None:
            return card[: begin.start()] + section + card[mark.end() :]
    gap = b"" if card.endswith((b"\n", b"\r")) else end
    return card + gap + end + section + end


def _section(
    plan: Plan,
    base: str,
    modifications: Sequence[Modification],
    tensors: Sequence[ReceiptTensor],
    before: str,
    after: str,
    earlier: Sequence[str],
) -> Iterator[str]:
    analyst = plan.analyst.kind + (f", {plan.analyst.model}" if plan.analyst.model else "")
    rejected = len(plan.modifications) - len(modifications)
    yield _BEGIN
    yield "## Changed weights"
    yield ""
    yield "Weights of this checkpoint were changed directly, without training. What is said outside of this section was"
    yield "written for its base; measurements there are of the base."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| base | {_code(base)} |"
    yield f"| fingerprint of the base | {_code(before)} |"
    yield f"| fingerprint of this checkpoint | {_code(after)} |"
    yield f"| goal | {_cell(plan.goal)} |"
    yield f"| plan | {_code(plan.id)}, written by {_cell(analyst)} |"
    yield f"| modifications | {len(modifications)} applied, {rejected} rejected in review |"
    yield f"| tensors changed | {len(tensors)} |"
    for number, goal in enumerate(earlier, start=1):
        yield f"| earlier patch in force, {number} of {len(earlier)} | {_cell(goal)} |"
    yield ""
    yield "| modification | tensors | operation | why |"
    yield "|---|---|---|---|"
    for one in modifications[:_MOST_MODIFICATIONS]:
        target, said = target_in_words(one.target), described(one)
        yield f"| {_code(one.id)} | {_code(target)} | {_code(said)} | {_cell(one.reasoning)} |"
    if len(modifications) > _MOST_MODIFICATIONS:
        yield f"| ... | {len(modifications) - _MOST_MODIFICATIONS} more | | |"
    yield ""
    yield "| tensor | relative change |"
    yield "|---|---:|"
    for tensor in tensors[:_MOST_TENSORS]:
        yield f"| {_code(tensor.name)} | {_change(tensor)} |"
    if len(tensors) > _MOST_TENSORS:
        yield f"| {len(tensors) - _MOST_TENSORS} more tensors | |"
    yield ""
    yield "Relative change is the Frobenius norm of the difference over that of the weights before, as stored. With the"
    yield "folder `.planner` beside this file, `planner log DIR` tells the history, `planner verify DIR` compares every"
    yield "byte with it, and `planner revert DIR` takes the change back bit for bit."
    yield _END


def _change(tensor: ReceiptTensor) -> str:
    if tensor.before is None:
        return "new"
    return "not finite" if tensor.relative_change is None else f"{tensor.relative_change:.3g}"


def _name(name: str) -> str:
    """The checkpoint's name; of a path, which says where it lay on one machine, the last part alone."""
    is_path = name.startswith(("/", "~", ".", "\\")) or "\\" in name or name.count("/") > 1
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "unnamed" if is_path else name


def _cell(text: str) -> str:
    """Prose as one table cell that renders as itself.

    Markup characters become character references, which Markdown never takes for structure. A word that a renderer
    would make a link of goes into a code span, where the characters that could end it are percent-encoded.
    """
    return " ".join(_linkless(word) if _LIKE_A_LINK.search(word) else _escaped(word) for word in _line(text).split(" "))


def _code(text: str) -> str:
    """A name or a number as one table cell: a code span, where nothing in it could end one."""
    shown = _line(text)
    return f"`{shown}`" if shown and not _OUT_OF_CODE.search(shown) else _cell(shown)


def _line(text: str) -> str:
    """Text on one line, not too long, without what a reader cannot see."""
    shown = plain(" ".join(text.split()))
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST].rstrip() + " ..."


def _escaped(word: str) -> str:
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", word)


def _linkless(word: str) -> str:
    return "`" + _OUT_OF_CODE.sub(lambda found: f"%{ord(found[0]):02X}", word) + "`"
