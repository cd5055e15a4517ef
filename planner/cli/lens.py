"""`planner lens`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelArgument
from planner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.checkpoint import Checkpoint
    from planner.cli.console import Screen
    from planner.probes.lens_types import Lens, LensText, LikelyToken, PromptLens, Recovery

_LONGEST_TOKEN = 12


def command(
    model: ModelArgument,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Documents: .jsonl, .json, or .txt with blank lines between.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Show the next token, layer by layer; as often as you like."),
    ] = None,
    plan: Annotated[Path | None, typer.Option(metavar="PLAN", help="What becomes of this plan's changes?")] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What becomes of the difference to this checkpoint?")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a document; default: as many as the model takes.")
    ] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="Only the first so many of the text.")] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Tokens shown for a prompt.")] = 5,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result here.")] = None,
    as_json: Json = False,
) -> None:
    """What each layer would predict; with a plan or a candidate, how much of the change survives at each layer."""
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, plan_at, profiled
    from planner.evaluation.report import Side
    from planner.probes.changed_model import planned_change
    from planner.probes.lens import Question, lens

    if plan is not None and candidate is not None:
        raise UsageError("a plan and a candidate are two changes", hint="give --plan or --candidate, not both")
    if text is None and not prompt:
        raise UsageError("nothing to look at", hint="give --text FILE, or --prompt TEXT, or both")
    screen = Screen(as_json=as_json)
    if out:
        fsio.require_folder_of(out)
    read = plan_at(plan) if plan else None
    found_text, kept = _read_text(text, documents, max_tokens) if text else (None, ())
    before = checkpoint_at(model)
    after = checkpoint_at(candidate) if candidate else None

    profile = profiled(before, screen)
    change = planned_change(read, before, profile, plan.parent) if read and plan else None

    def side(checkpoint: Checkpoint) -> Side:
        return Side(name=checkpoint.name, fingerprint=profiled(checkpoint, screen).fingerprint)

    with screen.progress("loading, then looking at positions", unit="positions") as bar:
        found = lens(
            before,
            Question(documents=kept, prompts=tuple(prompt or ()), top=top, text=found_text),
            change=change,
            candidate=after,
            sides=(side(before), side(after) if after else None),
            progress=bar.set,
        )
    if out:
        fsio.replace_file(out, found.model_dump_json(indent=2).encode() + b"\n")
        screen.say(f"wrote {out}")
    screen.emit(found)
    show_lens(found, screen)


def show_lens(found: Lens, screen: Screen) -> None:
    """The lens and the recovery, for people."""
    for prompt in found.prompts:
        _show_prompt(prompt, screen)
    where = f"{found.text.documents} documents of {Path(found.text.name).name}" if found.text else "the prompts"
    rows = [
        (_after(layer.layer), _number(layer.loss, ".4f"), _number(layer.kl, ".4f"), f"{layer.top1_agreement:.1%}")
        for layer in found.layers
    ]
    screen.table(("after", "loss, nats", "KL from the output", "same top token"), rows)
    screen.prose(f"the lens on {where}, {found.positions:,} positions", indent=0)
    if found.recovery:
        _show_recovery(found.recovery, screen)


def _show_prompt(prompt: PromptLens, screen: Screen) -> None:
    screen.show(f"after {prompt.prompt!r} ({prompt.tokens} token{'' if prompt.tokens == 1 else 's'}):")
    rows = []
    for layer in prompt.layers:
        rows.append((_after(layer.layer), _tokens(layer.top)))
        if layer.top_changed:
            rows.append(("  changed", _tokens(layer.top_changed)))
    screen.table(("after", "most likely next tokens"), rows, left=2)


def _show_recovery(recovery: Recovery, screen: Screen) -> None:
    rows = [
        (
            _after(layer.layer) + (" *" if layer.layer in recovery.changed_layers else ""),
            _number(layer.relative_norm, ".3g"),
            _number(layer.relative_norm_spread, ".2g"),
            _number(layer.cosine, ".5f"),
            _number(layer.difference, ".3g"),
            _number(layer.share_left, ".1%"),
            _number(layer.kl, ".3g"),
        )
        for layer in recovery.layers
    ]
    headings = ("after", "|h'-h|/|h|", "+- (documents)", "cosine", "|h'-h|", "of the largest", "KL of the lens")
    screen.table(headings, rows, spare=("+- (documents)",))
    if recovery.changed_layers:
        screen.show("* a layer whose own weights differ")
    screen.prose(recovery.sentence, indent=0)


def _read_text(path: Path, documents: int | None, max_tokens: int | None) -> tuple[LensText, tuple[str, ...]]:
    from planner.checkpoint import digest_bytes
    from planner.inference import parse_documents, read_text_file
    from planner.probes.lens_types import LensText

    data = read_text_file(path)
    kept = parse_documents(data.decode("utf-8-sig"), path)[:documents]
    about = LensText(name=str(path), digest=digest_bytes(data), documents=len(kept), max_tokens=max_tokens)
    return about, kept


def _after(layer: int | None) -> str:
    return "embedding" if layer is None else f"layer {layer}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _tokens(top: Sequence[LikelyToken]) -> str:
    return "  ".join(f"{_short(token.text)} {_number(token.probability, '.0%')}" for token in top)


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_TOKEN else text[: _LONGEST_TOKEN - 1] + "…")
