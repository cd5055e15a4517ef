"""`planner run`."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.given import Json


def command(
    pipeline: Annotated[Path, typer.Argument(metavar="PIPELINE.toml", help="Pipeline file.")],
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/NAME-DIGEST.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again in a new folder, even if a run is there.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Profile, propose, check, review by a rule, apply, evaluate, gate, keep or revert: unattended, resumable."""
    from planner.checkpoint import digest_bytes
    from planner.cli.console import Screen
    from planner.cli.evaluate import show_evaluation
    from planner.evaluation import Evaluation
    from planner.inputs import read_text
    from planner.pipeline import read_pipeline, run

    screen = Screen(as_json=as_json)
    definition = read_pipeline(pipeline)
    digest = digest_bytes(read_text(pipeline).encode()).removeprefix("blake3:")[:8]
    folder = run_dir or Path("runs") / f"{pipeline.stem}-{digest}"
    if fresh and folder.exists():
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
        folder = next(path for path in numbered if not path.exists())
    outcome = run(definition, pipeline.parent, folder, environment=os.environ, watcher=screen)
    screen.emit(outcome)
    if (folder / "evaluation.json").is_file():
        show_evaluation(Evaluation.model_validate_json(read_text(folder / "evaluation.json")), screen)
    screen.show(f"{outcome.decision}: {outcome.why}")
    screen.show(f"run folder: {folder}")
    if outcome.decision == "kept":
        screen.show(f"result: {outcome.candidate}")
    return outcome.exit_status
