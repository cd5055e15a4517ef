"""Record an evaluation in the history of the checkpoint that was evaluated.

Two files, each put in place in one step: first the evaluation, beside the patch it is of, then the ledger that names
it. A process that is killed between them leaves an evaluation that no ledger knows, which is no damage, and which the
next one replaces.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from planner import fsio
from planner.checkpoint import digest_bytes
from planner.errors import UnsafeInPlace
from planner.evaluation import Evaluation
from planner.evaluation.wording import finding
from planner.transaction.ledger import encode_ledger, ledger_path, patch_folder, read_ledger
from planner.transaction.seal import sealed
from planner.transaction.types import EvaluationSummary, Event, Ledger
from planner.transaction.unfinished import unfinished_records
from planner.transaction.writer import exclusive

__all__ = ["record_evaluation"]


def record_evaluation(model: Path, evaluation: Evaluation, *, by: str) -> Ledger | None:
    """Add `evaluation` to the ledger of the checkpoint in `model`, as one of the last patch in force.

    The same evaluation is recorded once. Returns the ledger afterwards; None, and nothing is written, where there is
    no ledger, where no patch is in force, or where the checkpoint is not the candidate that was evaluated. Raises
    `Locked`, `LedgerDamaged`, `UnsafeInPlace` where a link leads out of the ledger, or another `StorageError`.
    """
    model = model.resolve()  # whoever changes the checkpoint takes the lock beside its own name
    if not _speaks_of(read_ledger(model), evaluation):
        return None
    with exclusive(model):
        ledger = read_ledger(model)
        if ledger is None or not _speaks_of(ledger, evaluation):
            return None  # another process was quicker
        for path in unfinished_records(model):
            fsio.remove_file(path)
        patch = ledger.in_force[-1]
        content = evaluation.model_dump_json(indent=2).encode() + b"\n"
        earlier = [event for event in ledger.events if event.kind == "evaluated" and event.patch == patch]
        if any(event.evaluation and event.evaluation.digest == digest_bytes(content) for event in earlier):
            return ledger  # a run that was interrupted comes here again
        file = f"evaluation-{1 + len(earlier)}.json"
        folder = patch_folder(model, patch)
        _refuse_links(folder, model)
        fsio.ensure_folder(folder)
        fsio.replace_file(folder / file, content)
        updated = _updated(ledger, evaluation, patch, file, digest_bytes(content), by)
        fsio.replace_file(ledger_path(model), encode_ledger(updated))
    return updated


def _speaks_of(ledger: Ledger | None, evaluation: Evaluation) -> bool:
    """Whether the evaluated candidate is the checkpoint as the ledger has it, with a patch in force."""
    found = evaluation.candidate.fingerprint
    return ledger is not None and bool(ledger.in_force) and ledger.current.fingerprint == found


def _refuse_links(folder: Path, model: Path) -> None:
    """A checkpoint may come from a stranger; what is written for it stays inside of it."""
    for path in (folder, *folder.parents):
        if path == model:
            return
        if path.is_symlink():
            raise UnsafeInPlace(f"{path} is a symbolic link", hint="put the folder itself in its place")


def _updated(ledger: Ledger, evaluation: Evaluation, patch: int, file: str, digest: str, by: str) -> Ledger:
    event = Event(
        kind="evaluated",
        patch=patch,
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        by=by,
        fingerprint=ledger.current.fingerprint,
        records={file: digest},
        evaluation=EvaluationSummary(
            file=file,
            digest=digest,
            baseline=evaluation.baseline.fingerprint or "unknown",
            suite=evaluation.suite.name,
            accepted=evaluation.accepted if evaluation.gates else None,
            findings=tuple(map(finding, evaluation.metrics)),
        ),
    )
    updated = ledger.model_copy(update={"serial": ledger.serial + 1, "events": (*ledger.events, event)})
    return sealed(updated, follows=ledger)
