"""`planner schemas`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.records import Record


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write them.")] = Path("schemas"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")] = False,
) -> None:
    """Write the JSON schema of every file the planner reads or writes, from the types."""
    from planner import fsio

    wanted = {out / f"{name}.schema.json": content for name, content in generated().items()}
    stale = [path for path, content in wanted.items() if not path.is_file() or path.read_bytes() != content]
    stale += [path for path in sorted(out.glob("*.schema.json")) if path not in wanted]
    if check and stale:
        names = ", ".join(path.name for path in stale)
        raise UsageError(f"not up to date: {names}", hint="run `make schemas` and commit what it writes")
    if not check:
        fsio.ensure_folder(out)
        for path, content in wanted.items():
            fsio.replace_file(path, content)


def generated() -> dict[str, bytes]:
    """Every schema by name, as the bytes of its file."""
    return {
        name: json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema"} | kind.model_json_schema(by_alias=True),
            indent=2,
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for name, kind in _kinds().items()
    }


def _kinds() -> dict[str, type[Record]]:
    from planner.analysts import Transcript
    from planner.architecture import ModelSummary
    from planner.effects import CheckReport, Difference
    from planner.evaluation import Evaluation
    from planner.evidence import EvidenceFile
    from planner.pipeline import Outcome, Pipeline, Started
    from planner.plan import Plan, Policy
    from planner.probes.lens_types import Lens
    from planner.profile import Profile
    from planner.transaction import Ledger, Receipt, Verification

    return {
        "check": CheckReport,
        "diff": Difference,
        "evaluation": Evaluation,
        "evidence": EvidenceFile,
        "ledger": Ledger,
        "lens": Lens,
        "map": ModelSummary,
        "outcome": Outcome,
        "pipeline": Pipeline,
        "plan": Plan,
        "policy": Policy,
        "profile": Profile,
        "receipt": Receipt,
        "started": Started,
        "transcript": Transcript,
        "verification": Verification,
    }
