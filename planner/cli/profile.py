"""`planner profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.given import Json, ModelArgument
from planner.errors import OutputExists, UsageError


def command(
    model: ModelArgument,
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", metavar="PATTERN", help="Everything about these: name, glob or role."),
    ] = None,
    statistic: Annotated[str, typer.Option(metavar="NAME", help="What the bars show: std, rms, kurtosis, ...")] = "std",
    sort: Annotated[
        str | None, typer.Option(metavar="NAME", help="One line a tensor, by the magnitude of this statistic.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Lines of --sort.")] = 30,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table, one row a tensor: .csv, .parquet or .arrow.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write profile.json and the histograms to this folder.")] = None,
    spectra: Annotated[bool, typer.Option("--spectra", help="Singular values of every matrix as well; slow.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, metavar="N", help="Threads; by default one a core.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Read the weights again, even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Statistics of every tensor, exact, in bounded memory.

    With --json, --tensor leaves out the other tensors and --sort orders them; nothing else is left out.
    """
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, profiled
    from planner.cli.profile_detail import SPECTRAL, only, show_tensors
    from planner.cli.profile_table import known_statistic, show_overview, show_sorted, sorted_by
    from planner.profile import histograms_of
    from planner.profile.export import writer_of
    from planner.profile.pieces import profile_pieces

    screen = Screen(as_json=as_json)
    for name in (statistic, sort):
        if name is not None:
            known_statistic(name)
    if export:
        write = writer_of(export.name)
        if export.exists():
            raise OutputExists(f"{export} exists", hint="choose another name with --export, or remove it")
        fsio.require_folder_of(export)
    if out:
        _require_own_folder(out)
    profile = profiled(checkpoint_at(model), screen, force=force, spectra=spectra, workers=workers)
    for name in (statistic, sort):
        if name in SPECTRAL and not profile.spectra:
            raise UsageError(f"{name} comes from singular values", hint="add --spectra, which computes them")
    shown = only(profile, tensor) if tensor else profile
    shown = sorted_by(shown, sort) if sort else shown
    if out:
        fsio.ensure_folder(out)
        fsio.replace_file(out / "profile.json", profile_pieces(profile))
        files = histograms_of(profile).copy_to(out)
        screen.say(f"wrote {out / 'profile.json'}" + (f" and {files} of histograms" if files else ""))
    if export:
        fsio.replace_file(export, write(shown))
        screen.say(f"wrote {export}")
    screen.emit(shown)
    if sort:
        show_sorted(shown, screen, sort, limit, everything=profile)
    elif tensor:
        show_tensors(shown, screen, everything=profile)
    else:
        show_overview(profile, screen, statistic)


def _require_own_folder(out: Path) -> None:
    """Raises `OutputExists` if `out` is a checkpoint, or holds a profile.json that is none."""
    from planner import fsio

    if not out.exists():
        return
    if not out.is_dir():
        raise OutputExists(f"{out} is a file", hint="name a folder with --out")
    with fsio.storage_errors(out):
        names = [path.name for path in out.iterdir()]
        found = out / "profile.json"
        beginning = b""
        if found.is_file():
            with found.open("rb") as file:
                beginning = file.read(100)
    weights = [name for name in names if name.endswith(".safetensors") and not name.startswith("histograms-")]
    if weights or "config.json" in names:
        raise OutputExists(f"{out} holds a checkpoint", hint="name a folder of its own with --out")
    if "profile.json" in names and b'"planner/profile@' not in beginning:
        raise OutputExists(f"{found} is no profile", hint="choose another folder with --out, or remove it")
