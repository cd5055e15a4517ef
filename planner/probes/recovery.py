"""What becomes of a change on its way through the layers: does it grow, stay, or do later layers repair it?

The stream grows with depth, so a difference that no layer touches shrinks relative to it. That is not repair. A change
counts as repaired only where the norm of the difference itself falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from planner.probes.lens_types import Fate, Recovery, RecoveryLayer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Differences", "finite"]

RESOLUTION = 1e-5
_KL_RESOLUTION = 1e-6
# Within a tenth, the difference is said to be kept.
_KEPT = 0.1


def finite(value: float) -> float | None:
    """The number, or None where it is none."""
    return value if math.isfinite(value) else None


class Differences:
    """Sums over the positions of each document, at each place of the stream, in float64."""

    def __init__(self, places: int, documents: int) -> None:
        import torch

        def zeros() -> Any:
            return torch.zeros(places, documents, dtype=torch.float64)

        self.relative, self.cosine, self.norm, self.kl = zeros(), zeros(), zeros(), zeros()
        self.positions = torch.zeros(documents, dtype=torch.float64)

    def add_positions(self, owner: Tensor) -> None:
        """Count positions; `owner` [positions] is the document of each."""
        import torch

        self.positions.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))

    def add(self, place: int, before: Tensor, after: Tensor, owner: Tensor) -> None:
        """Positions of the stream, each [positions, channels], of the unchanged and the changed model."""
        import torch

        h, changed = before.double(), after.double()
        moved = (changed - h).norm(dim=-1)
        length, other = h.norm(dim=-1), changed.norm(dim=-1)
        # A position at which the stream is zero has no direction: the same zero counts as the same direction.
        still = moved == 0
        relative = torch.where(still, 0.0, moved / length)
        cosine = torch.where(still, 1.0, (h * changed).sum(dim=-1) / (length * other)).clamp(-1.0, 1.0)
        self.norm[place].index_add_(0, owner, moved)
        self.relative[place].index_add_(0, owner, relative)
        self.cosine[place].index_add_(0, owner, cosine)

    def add_kl(self, place: int, divergence: Tensor, owner: Tensor) -> None:
        """KL of each position, [positions]."""
        self.kl[place].index_add_(0, owner, divergence.double())

    def recovery(self, changed_blocks: Sequence[int]) -> Recovery:
        """What the sums say. `changed_blocks`: places of the blocks whose own weights differ."""
        total = float(self.positions.sum())

        def means(sums: Tensor) -> list[float]:
            return [float(value) / total for value in sums.sum(dim=1)]

        relative, cosine, norm, kl = means(self.relative), means(self.cosine), means(self.norm), means(self.kl)
        spread = [math.nan] * len(norm)
        if len(self.positions) > 1:
            spread = [float(value) for value in (self.relative / self.positions).std(dim=1)]
        largest = max((value for value in norm if math.isfinite(value)), default=0.0)
        layers = tuple(
            RecoveryLayer(
                layer=place - 1 if place else None,
                relative_norm=finite(relative[place]),
                relative_norm_spread=finite(spread[place]),
                cosine=finite(cosine[place]),
                difference=finite(norm[place]),
                share_left=finite(norm[place] / largest) if largest else None,
                kl=finite(kl[place]),
            )
            for place in range(len(norm))
        )
        enters = next((place for place, value in enumerate(relative) if not value <= RESOLUTION), None)
        start = None if enters is None else max(enters, max(changed_blocks, default=-1) + 1)
        fate = _fate(layers, start)
        return Recovery(
            changed_layers=tuple(changed_blocks),
            layers=layers,
            enters=enters,
            compared=start,
            resolution=RESOLUTION,
            fate=fate,
            sentence=_sentence(layers, enters, start, fate),
        )


def _fate(layers: Sequence[RecoveryLayer], start: int | None) -> Fate:
    last = layers[-1]
    if any(layer.relative_norm is None for layer in layers):
        return "not finite"
    if start is None:
        return "not seen" if last.kl is not None and last.kl <= _KL_RESOLUTION else "behind the stream"
    if start == len(layers) - 1:
        return "entered at the end"
    left, share = _left(layers, start)
    if left > 1 + _KEPT:
        return "amplified"
    if left >= 1 - _KEPT:
        return "kept"
    return "repaired" if share < 1 - _KEPT else "diluted"


def _left(layers: Sequence[RecoveryLayer], start: int) -> tuple[float, float]:
    """How much is left at the last place of what is there at `start`: relative to the stream, and by itself."""
    first, last = layers[start], layers[-1]
    assert first.relative_norm is not None, "asked only where all is finite"
    assert last.relative_norm is not None, "asked only where all is finite"
    assert first.difference is not None, "finite as the relative norm is"
    assert last.difference is not None, "finite as the relative norm is"
    if not first.relative_norm or not first.difference:  # several layers may cancel one another's change
        return (math.inf, math.inf) if last.relative_norm else (1.0, 1.0)
    return last.relative_norm / first.relative_norm, last.difference / first.difference


def _sentence(layers: Sequence[RecoveryLayer], enters: int | None, start: int | None, fate: Fate) -> str:
    last = layers[-1]
    kl = (
        "the predictions are not finite" if last.kl is None else f"the predictions differ by {last.kl:.3g} nats a token"
    )
    if fate == "not finite":
        broken = next(place for place, layer in enumerate(layers) if layer.relative_norm is None)
        return f"the stream of the changed model is not finite {_after(broken)}"
    if enters is None or start is None:
        if fate == "not seen":
            return f"the change is seen nowhere: at no layer is it more than {RESOLUTION:.3%} of the stream"
        return f"the stream is the same at every layer; only what follows the last one differs: {kl}"
    here = layers[start].relative_norm or 0.0
    entry = f"the change enters {_after(enters)}"
    if start > enters:
        entry += f", and more of it up to layer {start - 1}"
    entry += f", where it is {_percent(here)} of the stream"
    if fate == "entered at the end":
        return f"{entry}: no later layer is left to repair it; {kl}"
    left, share = _left(layers, start)
    amount = (
        f"it is {left:.3g} times that at the last layer"
        if left > 2
        else f"{_percent(left)} of that, relative, is left at the last layer"
    )
    itself = f"it is {share:.3g} times as large" if share > 1 else f"{_percent(share)} of it is left"
    words = {
        "amplified": "later layers amplify it",
        "kept": "later layers keep it",
        "diluted": f"later layers do not repair it, the stream grows around it (in itself, {itself})",
        "repaired": f"later layers repair part of it (in itself, {itself})",
    }[fate]
    return f"{entry}; {amount}: {words}; {kl}"


def _after(place: int) -> str:
    return f"after layer {place - 1}" if place else "with the embedding"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
