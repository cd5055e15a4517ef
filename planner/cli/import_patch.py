"""`planner import-patch`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelOption, at_most

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.plan import Plan


class Top(StrEnum):
    """Which quantile a share such as "top 10%" is taken of."""

    MAGNITUDE = "magnitude"
    SIGNED = "signed"


def command(
    patches: Annotated[Path, typer.Argument(metavar="LIST", help="JSON list of patches, as Tensor Slayer makes.")],
    model: ModelOption,
    goal: Annotated[
        str | None, typer.Option(callback=at_most(2048), help="What the list is meant to do. Default: that it is one.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PLAN", help="Where to write the plan.")] = Path("plan.json"),
    top: Annotated[
        Top | None,
        typer.Option(help='What "top 10%" is a share of: of |w|, or of w (as Tensor Slayer takes it).'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a list of patches into a plan for this checkpoint: every entry, or every problem at once.

    Names must be those of the checkpoint's tensors. Nothing is left out silently and nothing is approved.
    """
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, free_name, profiled
    from planner.inputs import read_text
    from planner.plan import new_plan, read_patch_list, write_plan

    screen = Screen(as_json=as_json)
    text = read_text(patches)
    free_name(out)
    checkpoint = checkpoint_at(model)
    found = read_patch_list(text, list(checkpoint.tensors), top=top.value if top else None)
    profile = profiled(checkpoint, screen)  # `check` is about to need it, and it knows the fingerprint
    plan = new_plan(
        goal=goal or f"what the imported list {patches.name} asks for"[:2048],
        name=profile.name,
        fingerprint=profile.fingerprint,
        found=found,
    )
    fsio.replace_file(out, write_plan(plan))
    screen.emit(plan)
    _show(plan, screen)
    screen.say(f"wrote {out}")
    screen.say(f"next: planner check {out} --model {model}")


def _show(plan: Plan, screen: Screen) -> None:
    from planner.plan.wording import describe

    rows = [
        (
            modification.id,
            ", ".join(modification.target.tensors or ()),
            describe(modification.operation.model_dump()),
            describe(modification.target.elements.model_dump()),
            f"{modification.confidence:g}",
        )
        for modification in plan.modifications
    ]
    screen.table(("id", "tensor", "operation", "elements", "confidence"), rows, left=4, spare=("elements",))
    tensors = len({row[1] for row in rows})
    screen.show(f"{len(rows)} modification{'' if len(rows) == 1 else 's'} of {tensors} tensor{'s' * (tensors != 1)}")
    if plan.note:
        screen.prose(plan.note, indent=0)
