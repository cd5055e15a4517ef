"""One stage, from empty to complete: weights, undo data, card, receipt and ledger, written and proven."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from planner import fsio
from planner.checkpoint import Checkpoint, digest_bytes, digest_file
from planner.errors import LedgerDamaged, PlanRefused, ResultDiffers
from planner.plan import Plan, Policy
from planner.transaction.card.model_card import CARD, model_card
from planner.transaction.checked_plan import stale
from planner.transaction.in_place.journal import Journal, PieceDigests
from planner.transaction.in_place.low_space import overwritten, slot_bytes
from planner.transaction.ledger import goals_in_force, ledger_path, patch_folder, read_ledger
from planner.transaction.pieces import Pass, Piece
from planner.transaction.progress import Steps
from planner.transaction.proof import Distances, Undone, prove, prove_ahead, state_of
from planner.transaction.record import Recording, cumulative_changes
from planner.transaction.sighting import Sighting
from planner.transaction.types import Frames, Ledger, Receipt, State
from planner.transaction.undo.data import UndoData, UndoWriter
from planner.transaction.undo.way_back import Framed, WayBack, way_back
from planner.transaction.work import Work
from planner.transaction.writing import Written, fill_stage, put_file

__all__ = ["Expected", "Patching", "Source", "Staging"]


@dataclass(frozen=True)
class Expected:
    """What the result has to be."""

    tensors: dict[str, str]
    """Digest of each tensor that changes."""
    fingerprint: str


class Patching(Protocol):
    """What is to be applied: a checked plan, or a patch made elsewhere."""

    @property
    def plan(self) -> Plan:
        """The plan."""
        ...

    @property
    def policy(self) -> Policy:
        """The limits."""
        ...

    @property
    def told(self) -> Steps:
        """Who is told of the progress."""
        ...

    def work_again(self, checkpoint: Checkpoint) -> Work:
        """The work on the same checkpoint under another name."""
        ...

    def keep_beside(self, records: Path) -> None:
        """Keep what else belongs to the record of the patch."""
        ...

    def undo_bytes(self, work: Work) -> int:
        """At most how large the undo data become."""
        ...


@dataclass(frozen=True)
class Source:
    """Where the checkpoint comes from."""

    ledger: Ledger | None
    """The history that goes on; None where one begins."""
    earlier: WayBack
    """Back to where its own history began."""
    inherited: dict[str, float]
    """How far each tensor is from its first weights, where a history begins."""
    before: dict[str, float]
    """How far its own beginning was from them."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, in_place: bool) -> Source:
        """That of a checkpoint that is to be changed, or copied. Raises `LedgerDamaged`."""
        ledger = None
        if in_place:
            ledger = read_ledger(checkpoint.path)
        else:
            with suppress(LedgerDamaged):  # a copy is made of the bytes, whatever their ledger says
                ledger = read_ledger(checkpoint.path)
        if ledger is None:
            return cls(None, WayBack(), {}, {})
        earlier = way_back(checkpoint.path, checkpoint, ledger.in_force)
        inherited = {} if in_place else cumulative_changes(checkpoint.path, ledger)
        return cls(ledger if in_place else None, earlier, inherited, ledger.inherited)


class Staging:
    """One stage, from empty to complete."""

    def __init__(self, patch: Patching, source: Source, recording: Recording, stage: Path, *, low_space: bool) -> None:
        self._patch, self._source, self._recording, self._stage = patch, source, recording, stage
        self._work, self._low_space = recording.work, low_space
        self._records = patch_folder(stage, recording.number)
        self._framings = self._work.framings()
        self._undo = UndoWriter(self._records, self._work.codings)
        self._digests = PieceDigests()
        self._distances = Distances(self._work.checkpoint.tensors)
        self._written: Written
        self._undone: Undone

    def fill(self, *, card: bool, expected: Expected | None) -> Receipt:
        """Write everything into the stage, and prove it as far as that can be done before anything is overwritten."""
        work, told, stage = self._work, self._patch.told, self._stage
        self._written = written = fill_stage(
            work.checkpoint,
            stage,
            work.changes,
            share=self._recording.in_place,
            low_space=self._low_space,
            later=frozenset({CARD}) if card else frozenset(),
            done=self._code,
            keep=self._keep,
            progress=told.step("writing"),
        )
        if written.before.fingerprint != self._patch.plan.checkpoint.fingerprint:
            raise stale(work.checkpoint.path, written.before.fingerprint, self._patch.plan)
        after = state_of(stage, written)
        if card:
            after = self._with_card(after.fingerprint)
            written = self._written
        arrays = self._undo.finish(work.replaced)
        self._undone = self._how_undone(arrays.frames)
        if self._low_space:
            self._prove_ahead()
        else:
            prove(stage, written, undone=self._undone, progress=told.step("verifying"))
        distances = self._changes_in_all()
        self._patch.keep_beside(self._records)
        source = self._source
        relative = self._work.relative
        slot = slot_bytes(work.checkpoint, work.changes.tensors) if self._low_space else 0
        receipt = self._recording.write(
            stage, source.ledger, written, after, arrays, relative, distances, source.inherited, slot=slot
        )
        if expected is not None:
            _refuse_other(receipt, expected)
        return receipt

    def change_in_place(self, final: Path, receipt: Receipt, seen: Sighting) -> None:
        """Overwrite the weights of `final`, and commit, if everything there is as it was `seen`."""
        ledger = ledger_path(self._stage)
        with fsio.storage_errors(ledger):
            digest = digest_file(ledger)
        journal = Journal(
            way="apply",
            stage=self._stage.name,
            patches=(receipt.patch,),
            ledger=digest,
            tensors=tuple(self._digests.tensors),
            pieces=digest_bytes(bytes(self._digests.content)),
        )
        told = self._patch.told
        # The earlier patches have been moved aside with the checkpoint; how far it is from them is known already.
        undone = replace(self._undone, earlier={})
        overwritten(
            final,
            self._stage,
            journal,
            self._digests,
            seen,
            forwards=self._forwards,
            prove=partial(prove, self._stage, self._written, undone=undone, progress=told.step("verifying")),
            progress=told.step("overwriting"),
        )

    def _code(self, piece: Piece) -> None:
        """What goes into the undo data of a piece, and into the journal."""
        assert piece.old is not None
        assert piece.new is not None
        framing = self._framings[piece.tensor]
        frame = framing.encode(piece.old, piece.new, piece.begin, piece.ranks)
        piece.outcome = frame, PieceDigests.pair(piece.new, piece.old) if self._low_space else b""

    def _keep(self, piece: Piece) -> None:
        frame, digests = piece.outcome
        self._undo.keep(piece.tensor, frame)
        if self._low_space:
            self._digests.add(piece.tensor, piece.number, digests)

    def _with_card(self, fingerprint: str) -> State:
        """Write the card, now that the fingerprint of the result is known; the state with it."""
        work, recording = self._work, self._recording
        present = work.checkpoint.path / CARD
        ledger = self._source.ledger
        content = model_card(
            present.read_bytes() if present.is_file() else None,
            plan=recording.plan,
            modifications=recording.modifications,
            tensors=work.receipts(self._written),
            before=self._written.before.fingerprint,
            after=fingerprint,
            earlier=goals_in_force(ledger) if ledger else (),
        )
        work.add_file(CARD, content)
        self._written = put_file(self._stage, self._written, CARD, content, like=present)
        return state_of(self._stage, self._written)

    def _how_undone(self, frames: dict[str, Frames]) -> Undone:
        data = UndoData.of(self._records)
        tensors, codings = self._work.checkpoint.tensors, self._work.codings
        return Undone(
            layers={
                name: partial(Framed, data, found, tensors[name], codings.get(name)) for name, found in frames.items()
            },
            earlier=self._source.earlier.layers,
            before=self._written.before.tensors,
            distances=self._distances,
        )

    def _prove_ahead(self) -> None:
        tensors = self._work.checkpoint.tensors
        nbytes = {name: tensors[name].nbytes for name in self._work.changes.tensors}
        progress = self._patch.told.step("proving")
        for pieces in self._forwards(self._work.checkpoint):
            prove_ahead(pieces, nbytes, self._undone, progress)

    def _forwards(self, checkpoint: Checkpoint) -> Iterator[Generator[Piece]]:
        """The passes over the shards that change, of the checkpoint or of the same one under another name."""
        here = checkpoint.path == self._work.checkpoint.path
        work = self._work if here else self._patch.work_again(checkpoint)
        over = Pass(checkpoint, work.changes)
        for shard in checkpoint.shards:
            if work.changes.rewrites(checkpoint, shard.name):
                yield over.over(shard.name)

    def _changes_in_all(self) -> dict[str, float | None]:
        """‖W - W₀‖F/‖W₀‖F of every tensor that changes. Raises `PlanRefused` where one is beyond the policy."""
        found: dict[str, float | None] = {}
        for name, change in self._work.relative.items():
            whole = self._distances.of(name) if self._source.earlier.layers.get(name) else change
            before = self._source.before.get(name, 0.0)
            found[name] = None if whole is None else before + whole * (1 + before)
        policy = self._patch.policy
        limit = policy.cumulative_limit
        if beyond := {name: change for name, change in found.items() if change is not None and change > limit}:
            raise PlanRefused(
                f"with the patches before it, the plan goes too far from the original in {len(beyond)} tensors",
                hint="go back first (`planner revert`), or allow more with largest_cumulative_change in the policy",
                problems=tuple(
                    f"{name}: |W - W0|/|W0| would be {change:.3g}, beyond largest_cumulative_change = {limit:g}"
                    for name, change in beyond.items()
                ),
            )
        return found


def _refuse_other(receipt: Receipt, expected: Expected) -> None:
    """Raise `ResultDiffers` where a result is not the one that the same patch had elsewhere."""
    here = {tensor.name: tensor.after for tensor in receipt.tensors}
    there = expected.tensors
    wrong = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if wrong or receipt.fingerprint_after != expected.fingerprint:
        raise ResultDiffers(
            f"the result is not the one it was to be: {', '.join(wrong[:5]) or 'config.json'}",
            hint="nothing was changed; is it the receipt, or the patch, of this plan, and the same base?",
        )
