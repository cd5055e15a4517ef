"""What the user gave on the command line, opened: checkpoints, profiles, plans, policies, the user's own name."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import OutputExists

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.checkpoint import Checkpoint
    from planner.cli.console import Screen
    from planner.plan import Plan, Policy
    from planner.profile import Profile
    from planner.transaction import Receipt

__all__ = [
    "Json",
    "ModelArgument",
    "ModelOption",
    "at_most",
    "checkpoint_at",
    "free_name",
    "invoking_user",
    "plan_at",
    "policy_at",
    "profiled",
    "receipt_at",
]

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, or hub id with @revision.")]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="Checkpoint folder, or hub id.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def checkpoint_at(model: str) -> Checkpoint:
    """The checkpoint that the user named."""
    from planner.checkpoint import locate, open_checkpoint

    return open_checkpoint(locate(model))


def profiled(
    checkpoint: Checkpoint,
    screen: Screen,
    *,
    force: bool = False,
    spectra: bool = False,
    workers: int | None = None,
) -> Profile:
    """Its profile, kept or new, with a progress bar."""
    from planner.profile import profile_of

    total = checkpoint.nbytes * (2 if spectra else 1)
    with screen.progress(f"profiling {checkpoint.name}", total) as bar:
        return profile_of(checkpoint, force=force, spectra=spectra, workers=workers, progress=bar.advance)


def plan_at(path: Path) -> Plan:
    """The plan in a file."""
    from planner.inputs import read_text
    from planner.plan import read_plan

    return read_plan(read_text(path))


def policy_at(path: Path | None) -> Policy:
    """The policy in a file, or the default one."""
    from planner.inputs import read_text
    from planner.plan import Policy, read_policy

    return read_policy(read_text(path)) if path else Policy()


def receipt_at(path: Path) -> Receipt:
    """The receipt in a file."""
    from pydantic import ValidationError

    from planner.errors import FileUnreadable
    from planner.inputs import read_text
    from planner.transaction import Receipt

    try:
        return Receipt.model_validate_json(read_text(path))
    except ValidationError as error:
        raise FileUnreadable(
            f"{path} is no receipt: {str(error).splitlines()[0]}",
            hint="it is .planner/patches/NNNN/receipt.json of a patched checkpoint",
        ) from None


def invoking_user() -> str:
    """Who runs the command, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in many containers
        return "unknown"


def at_most(longest: int) -> Callable[[str | None], str | None]:
    """What checks an option that is free text: as long as the file it goes into allows, and text."""

    def checked(text: str | None) -> str | None:
        if text is not None and (len(text) > longest or any("\ud800" <= c <= "\udfff" for c in text)):
            raise typer.BadParameter(f"it must be UTF-8 text of at most {longest:,} characters")
        return text

    return checked


def free_name(path: Path) -> None:
    """Raises `OutputExists` if something is there already, or `StorageError` if its folder is not."""
    from planner import fsio

    if path.exists():
        raise OutputExists(f"{path} exists", hint="choose another name with --out, or remove it")
    fsio.require_folder_of(path)  # better now than after an hour of work
