"""Transactions: all of a plan or nothing, undo that is proven, and a history kept with the checkpoint."""

from __future__ import annotations

from planner.transaction.apply import apply_patch, apply_plan
from planner.transaction.beside import left_beside
from planner.transaction.budget import with_budget
from planner.transaction.evaluated import record_evaluation
from planner.transaction.ledger import RECEIPT, patch_folder, read_ledger
from planner.transaction.places import free_name
from planner.transaction.portable.exporting import export_patch
from planner.transaction.portable.porting import PatchHead, PortablePatch, is_portable, patch_statement
from planner.transaction.progress import Progress
from planner.transaction.recover import recover
from planner.transaction.revert import revert
from planner.transaction.types import Event, FileState, Ledger, Receipt, ReceiptTensor, State, Verification
from planner.transaction.verify import verify

__all__ = [
    "RECEIPT",
    "Event",
    "FileState",
    "Ledger",
    "PatchHead",
    "PortablePatch",
    "Progress",
    "Receipt",
    "ReceiptTensor",
    "State",
    "Verification",
    "apply_patch",
    "apply_plan",
    "export_patch",
    "free_name",
    "is_portable",
    "left_beside",
    "patch_folder",
    "patch_statement",
    "read_ledger",
    "record_evaluation",
    "recover",
    "revert",
    "verify",
    "with_budget",
]
