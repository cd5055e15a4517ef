"""Gradients taken in by hooks, one parameter at a time, reduced to what is kept of them, and dropped.

A backward pass reaches the parameters one after the other. Each gradient is turned into Σ W∘G over every row and every
column (d loss / d log of a factor there; Michel et al. 2019 take the same derivative for heads), Σ G (d loss / d shift)
and, where asked, random sketches of G; then it goes away. So there is never more than one of them.

A sketch is a pair G·A, B·G with random A and B; what G was is got back from them as well as its rank allows (Tropp et
al. 2017, "Practical sketching algorithms for low-rank matrix approximation").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.evidence import Layout

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

__all__ = ["SKETCH_COLUMNS", "SKETCH_RANK", "Reduction", "direction_of", "mixed_seed"]

SKETCH_RANK = 4
"""Directions that a sketch can be asked for."""
SKETCH_COLUMNS = 16
"""Columns of A; B has twice as many rows and one. More than are asked for, because gradients fall off slowly: on the
bundled model the direction that 4 columns give has half the slope of the best one, 16 give 0.98 of it (medians)."""
_LARGEST_SKETCH = 2**28  # elements of a matrix beyond which it is not sketched


class Reduction:
    """What the hooks fill: sums over the rows and columns of the parameters since the last `take`."""

    def __init__(self, parameters: Mapping[str, Parameter], layout: Layout, *, seed: int) -> None:
        import torch

        self._layout = layout
        first = next(iter(parameters.values()))
        device = first.device
        # Sums are kept in float32, or in float64 for a model that runs in it.
        self._wide = torch.promote_types(first.dtype, torch.float32)
        self._units = torch.zeros(layout.units, device=device, dtype=self._wide)
        self._shifts = torch.zeros(layout.tensors, device=device, dtype=self._wide)
        self._sketching: tuple[int, float] | None = None
        self._random: dict[str, tuple[Tensor, Tensor]] = {}
        self.sketches: dict[str, tuple[Tensor, Tensor]] = {}
        """By tensor, for each half of the documents: [2, rows, r] and [2, 2 r + 1, columns]."""
        self._handles = []
        for name, parameter in parameters.items():
            rows, columns = layout.shapes[name]
            if min(rows, columns) > 1 and rows * columns <= _LARGEST_SKETCH:
                generator = torch.Generator().manual_seed(mixed_seed(seed, "sketch", layout.places[name].number))
                left, right = 2 * SKETCH_COLUMNS + 1, SKETCH_COLUMNS
                random = torch.randn(left * rows + columns * right, generator=generator).to(self._wide)
                self._random[name] = (
                    random[: left * rows].reshape(left, rows).to(device),
                    random[left * rows :].reshape(columns, right).to(device),
                )
                self.sketches[name] = (
                    torch.zeros(2, rows, right, device=device, dtype=self._wide),
                    torch.zeros(2, left, columns, device=device, dtype=self._wide),
                )
            handle = parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def _hook(self, name: str) -> Any:
        place = self._layout.places[name]

        def reduce(parameter: Tensor) -> None:
            gradient = parameter.grad
            parameter.grad = None
            assert gradient is not None, "the hook runs after a gradient was accumulated"
            matrix = gradient.reshape(place.shape).to(self._wide)
            product = parameter.detach().reshape(place.shape).to(self._wide) * matrix
            self._units[place.rows] += product.sum(dim=1)
            self._units[place.columns] += product.sum(dim=0)
            self._shifts[place.number] += matrix.sum()
            if self._sketching is not None and name in self._random:
                left, right = self._random[name]
                half, factor = self._sketching
                self.sketches[name][0][half] += factor * (matrix @ right)
                self.sketches[name][1][half] += factor * (left @ matrix)

        return reduce

    def sketch(self, half: int | None, factor: float = 1.0) -> None:
        """From now on add gradients, times `factor`, to the sketch of this half of the documents, or to none."""
        self._sketching = None if half is None else (half, factor)

    def take(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums so far, [units] and [tensors]; they begin anew."""
        units, shifts = (sums.cpu().numpy().astype(np.float64) for sums in (self._units, self._shifts))
        self._units.zero_()
        self._shifts.zero_()
        return units, shifts

    def randoms(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """By tensor, B and A of its sketch."""
        return {name: (left.cpu().numpy(), right.cpu().numpy()) for name, (left, right) in self._random.items()}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def mixed_seed(seed: int, name: str, *numbers: int) -> int:
    """A seed below 2^63 for one of many generators; any two of them have nothing to do with each other."""
    mixed = np.random.SeedSequence([seed, *name.encode(), *numbers]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))


def direction_of(
    outer: NDArray[np.float64], inner: NDArray[np.float64], left: NDArray[np.float32], *, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The leading singular vectors of G from its sketches Y = G·A, [rows, r], and Z = B·G, [2r+1, columns].

    Returns u [rows, rank], strengths [rank] and v [rank, columns]: algorithm 4 of Tropp et al. 2017.
    """
    basis, _ = np.linalg.qr(outer)
    small, *_ = np.linalg.lstsq(left.astype(np.float64) @ basis, inner, rcond=None)
    u, strengths, v = np.linalg.svd(small, full_matrices=False)
    return basis @ u[:, :rank], strengths[:rank], v[:rank]
