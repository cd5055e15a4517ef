"""The seal of a ledger: one digest of everything else in it.

It finds accidents: a flipped bit, a merge by hand, a line that was edited without much thought. Who can write the
folder can write the seal as well; against that there are signatures (`planner.signing`).
"""

from __future__ import annotations

from pathlib import Path

from planner.checkpoint import digest_bytes
from planner.errors import LedgerDamaged
from planner.plan.digests import canonical_json
from planner.transaction.types import Ledger

__all__ = ["require_seal", "seal_holds", "sealed"]


def seal_holds(ledger: Ledger) -> bool:
    """Whether the ledger is as it was written. One of an earlier version has none, and nothing to break."""
    return ledger.seal is None or ledger.seal == _seal_of(ledger)


def sealed(ledger: Ledger, *, follows: Ledger | None) -> Ledger:
    """The ledger as it is to be written, after the ledger `follows`, if there was one.

    A seal that did not hold is kept as it is: what was damaged must not look whole because something was added to it.
    """
    if follows is not None and not seal_holds(follows):
        return ledger.model_copy(update={"seal": follows.seal})
    return ledger.model_copy(update={"seal": _seal_of(ledger)})


def require_seal(model: Path, ledger: Ledger | None) -> None:
    """Raise `LedgerDamaged` for a history that nothing may be added to: its seal does not hold."""
    if ledger is not None and not seal_holds(ledger):
        raise LedgerDamaged(
            f"the ledger of {model} is not as it was written: its seal does not hold",
            hint=f"put {model / '.planner' / 'ledger.json'} back from a copy; or --out DIR begins a new history",
        )


def _seal_of(ledger: Ledger) -> str:
    # Without defaults: a field that a later version adds must not break the seals of this one.
    return digest_bytes(canonical_json(ledger.model_dump(mode="json", exclude={"seal"}, exclude_defaults=True)))
