"""`planner profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelArgument

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.profile import Profile, TensorProfile

_HEADINGS = ("role", "layer", "dtype", "shape", "mean", "std", "min", "max", "kurt", ">6std", "z")


def command(
    model: ModelArgument,
    out: Annotated[Path | None, typer.Option(help="Write profile.json to this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Read the weights again, even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Statistics of every tensor, exact, in bounded memory."""
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, profiled

    screen = Screen(as_json=as_json)
    profile = profiled(checkpoint_at(model), screen, force=force)
    if out:
        fsio.ensure_folder(out)
        fsio.replace_file(out / "profile.json", profile.model_dump_json(indent=1).encode() + b"\n")
        screen.say(f"wrote {out / 'profile.json'}")
    screen.emit(profile)
    _print(profile, screen)


def _print(profile: Profile, screen: Screen) -> None:
    from planner.profile import peer_groups, standings

    z = {s.tensor.name: s.robust_z for group in peer_groups(profile.tensors) for s in standings(group)}
    screen.show(f"{profile.name}: {profile.parameters:,} parameters, {profile.bytes:,} bytes")
    screen.show(profile.fingerprint)
    shown = ""
    rows = []
    for tensor in sorted(profile.tensors, key=lambda t: (t.layer is not None, t.role, t.layer or 0)):
        title = tensor.role if tensor.role != shown else ""
        shown = tensor.role
        rows.append((title, *_row(tensor, z.get(tensor.name))))
    screen.table(_HEADINGS, rows, spare=("dtype", "mean", "min", "shape", "max"))
    screen.show("std: population; kurtosis: excess; z: how far the rms is from that of the same role in other layers.")
    screen.show("--json has the names, the quantiles and the rest.")
    for tensor in profile.tensors:
        if tensor.nan or tensor.inf:
            screen.show(f"warning: {tensor.name} holds {tensor.nan:,} NaN and {tensor.inf:,} infinite elements")


def _row(tensor: TensorProfile, z: float | None) -> tuple[str, ...]:
    numbers = (tensor.mean, tensor.std, tensor.min, tensor.max)
    return (
        "-" if tensor.layer is None else str(tensor.layer),
        tensor.dtype,
        "x".join(map(str, tensor.shape)) or "scalar",
        *(
            "-" if number is None else f"{number:.2g}" if place == 0 else f"{number:.3g}"
            for place, number in enumerate(numbers)
        ),
        "-" if tensor.kurtosis is None else f"{tensor.kurtosis:.2f}",
        f"{tensor.outliers.get('6', 0):,}" if tensor.understood else "-",
        "-" if z is None else f"{z:+.1f}",
    )
