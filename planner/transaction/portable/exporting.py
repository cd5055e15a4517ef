"""Export a patch in force as a portable file (`patch_file`), from the patched checkpoint and its ledger alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from blake3 import blake3

from planner import fsio
from planner.checkpoint import Checkpoint, TensorReader, digest_bytes, encode_header, open_checkpoint
from planner.errors import LedgerDamaged, OutputExists, PatchMissing, PatchUnusable, PlanInvalid
from planner.plan import read_plan
from planner.transaction.ledger import PLAN, patch_folder, read_ledger
from planner.transaction.pieces import PIECE
from planner.transaction.portable.patch_file import HEAD, PatchHead, PatchTensor
from planner.transaction.portable.patch_file import PLAN as PLAN_ARRAY
from planner.transaction.portable.porting import new_config
from planner.transaction.stage import lock_file
from planner.transaction.types import Frames, Ledger, Receipt, ReceiptTensor
from planner.transaction.undo.data import Arrays, UndoData
from planner.transaction.undo.frames import Framing
from planner.transaction.undo.residuals import Coding
from planner.transaction.undo.way_back import WayBack, piece_count, read_receipt, through, way_back

__all__ = ["export_patch"]

Progress = Callable[[str, int, int], None]


def export_patch(model: Path, out: Path, *, number: int | None = None, progress: Progress | None = None) -> PatchHead:
    """Write patch `number` of `model`, the last one in force by default, to the new file `out`.

    Raises `OutputExists`, `PatchMissing` where no such patch is in force, `LedgerDamaged` where the weights are not
    what the ledger says, `Locked` while another process writes to `out`, or a `StorageError`.
    """
    if out.exists():
        raise OutputExists(f"{out} exists", hint="choose another name with --out, or remove it")
    fsio.require_folder_of(out)
    ledger = _ledger(model)
    number = ledger.in_force[-1] if number is None else number
    if number not in ledger.in_force:
        raise PatchMissing(f"patch {number} is not in force", hint="`planner log MODEL` shows which are")
    checkpoint = open_checkpoint(model)
    later = ledger.in_force[ledger.in_force.index(number) + 1 :]
    exporting = _Exporting(checkpoint, number, way_back(model, checkpoint, later), progress)
    folder = out.parent / f".{out.name}.planner-export"
    with fsio.lock(lock_file(out)):
        try:
            fsio.remove_tree(folder)  # left by a process that was killed
            fsio.make_folder(folder)
            try:
                head = exporting.head(folder)
            except (PlanInvalid, OSError, ValueError) as error:
                raise LedgerDamaged(
                    f"the record of patch {number} is damaged: {' '.join(str(error).split())[:200]}",
                    hint="`planner verify MODEL` names what differs; put it back from a copy",
                ) from None
            fsio.replace_file(out, exporting.content(folder, head))
        finally:
            fsio.remove_tree(folder)
    return head


def _ledger(model: Path) -> Ledger:
    ledger = read_ledger(model)
    if ledger is None or not ledger.in_force:
        raise PatchMissing(f"no patch is in force on {model}", hint="`planner log MODEL` shows its history")
    return ledger


class _Exporting:
    """One patch, on its way from a ledger to a file."""

    def __init__(self, checkpoint: Checkpoint, number: int, later: WayBack, progress: Progress | None) -> None:
        self._checkpoint, self._later, self._progress = checkpoint, later, progress
        self._folder = patch_folder(checkpoint.path, number)
        self._receipt: Receipt = read_receipt(self._folder)
        self._undo = UndoData.of(self._folder)
        self._layers = way_back(checkpoint.path, checkpoint, (number,)).layers
        self._small: dict[str, bytes] = {}
        """Arrays that are not frames."""

    def head(self, folder: Path) -> PatchHead:
        """Write the frames into `folder`; what the patch says of itself."""
        arrays, receipt = Arrays(folder), self._receipt
        total = sum(self._checkpoint.tensors[tensor.name].nbytes for tensor in receipt.tensors)
        done, tensors = 0, []
        for tensor in receipt.tensors:
            tensors.append(self._tensor(tensor, arrays))
            done += self._checkpoint.tensors[tensor.name].nbytes
            if self._progress:
                self._progress("exporting", done, total)
        arrays.flush()
        plan = (self._folder / PLAN).read_bytes()
        self._small[PLAN_ARRAY] = plan
        return PatchHead(
            base=read_plan(plan.decode("utf-8")).checkpoint.name[:512],
            fingerprint_before=receipt.fingerprint_before,
            fingerprint_after=receipt.fingerprint_after,
            plan_digest=digest_bytes(plan),
            tensors=tuple(tensors),
            config=self._config(),
        )

    def content(self, folder: Path, head: PatchHead) -> Iterator[bytes]:
        """The file, piece by piece."""
        small = {HEAD: head.model_dump_json().encode()} | self._small
        paths = sorted(folder.glob("*.safetensors"))
        frames = UndoData(paths)
        names = sorted(frames.names, key=lambda name: int(name.rpartition("/")[2]))
        sizes = {name: len(content) for name, content in small.items()} | {n: frames.nbytes(n) for n in names}
        yield encode_header([(name, "U8", (size,)) for name, size in sizes.items()], {"format": "planner/patch@1"})
        yield from small.values()
        for name in names:
            yield from frames.chunks(name)

    def _tensor(self, tensor: ReceiptTensor, arrays: Arrays) -> PatchTensor:
        here = self._checkpoint.tensors[tensor.name]
        coding = self._coding(tensor)
        framing = Framing(here.dtype, here.shape, coding, forwards=True)
        by_table = coding is not None
        before, after = blake3(), blake3()
        layers = [layer() for layer in self._layers.get(tensor.name, ())]
        later = [layer() for layer in self._later.layers.get(tensor.name, ())]
        with closing(TensorReader(self._checkpoint)) as reader:
            for number in range(piece_count(here.nbytes)):
                now = np.empty(min(PIECE, here.nbytes - number * PIECE), np.uint8)
                reader.read_into(now.data, here, number * PIECE)
                new = through(later, number, now)
                old = through(layers, number, new) if tensor.before else np.zeros_like(new)
                before.update(old.data)
                after.update(new.data)
                if coding is not None:
                    by_table = by_table and bool(
                        np.array_equal(coding.table[old.view(coding.pattern)], new.view(coding.pattern))
                    )
                else:
                    arrays.keep(tensor.name, framing.encode(new, old, number * PIECE))
        _require(tensor, "blake3:" + before.hexdigest(), "blake3:" + after.hexdigest(), by_table or coding is None)
        table = None
        if coding is not None and tensor.undo and tensor.undo.table:
            table = tensor.undo.table
            self._small[table] = b"".join(self._undo.chunks(table))
        return PatchTensor(
            name=tensor.name,
            dtype=here.dtype,
            shape=here.shape,
            modifications=tensor.modifications,
            before=tensor.before,
            after=tensor.after,
            relative_change=tensor.relative_change,
            frames=Frames(table=table, parts=tuple(arrays.parts.get(tensor.name, ()))),
        )

    def _coding(self, tensor: ReceiptTensor) -> Coding | None:
        undo = tensor.undo
        return self._undo.table(undo.table) if undo and undo.table else None

    def _config(self) -> dict[str, bool]:
        """The keys of config.json that the patch gave another value, whatever later ones made of it."""
        name = "config.json"
        file = next((file for file in self._receipt.files if file.name == name), None)
        if file is None:
            return {}
        old = b"".join(self._undo.chunks(file.undo)) if file.undo else b""
        new = self._later.files.get(name) or self._checkpoint.config_bytes
        if digest_bytes(new) != file.after or (digest_bytes(old) if file.undo else None) != file.before:
            raise LedgerDamaged(f"{name} is not what the ledger says", hint="`planner verify MODEL` names what differs")
        was, now = (json.loads(content or b"{}") for content in (old, new))
        changed = {key: value for key, value in now.items() if key not in was or was[key] != value}
        if new_config(was, changed) != new or not all(isinstance(value, bool) for value in changed.values()):
            raise PatchUnusable(
                f"the patch changes {name} in a way that a portable one has no words for",
                hint="give the plan itself away, with what it reads",
            )
        return changed


def _require(tensor: ReceiptTensor, before: str, after: str, sound: bool) -> None:
    if not sound or after != tensor.after or (tensor.before is not None and before != tensor.before):
        raise LedgerDamaged(
            f"{tensor.name} is not what the ledger says, or its undo data are not",
            hint="`planner verify MODEL` names what differs",
        )
