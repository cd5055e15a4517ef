"""Transactions: all of a plan or nothing, undo that is proven, and a history kept with the checkpoint."""

from __future__ import annotations

from planner.transaction.apply import apply_plan
from planner.transaction.ledger import RECEIPT, patch_folder, read_ledger
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
    "Progress",
    "Receipt",
    "ReceiptTensor",
    "State",
    "Verification",
    "apply_plan",
    "patch_folder",
    "read_ledger",
    "recover",
    "revert",
    "verify",
]
