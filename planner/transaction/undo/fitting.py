"""Choose a predictor for a piece and fit it: the encoder's side of `predicting`, which nobody who decodes needs.

Each predictor is first fitted to a few of the rows that change, and what it leaves there is counted; the best is then
fitted to the whole piece. Outer products are the exception: they are the strongest singular vectors of the whole
difference, found by a randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), as many as rise
above what rounding alone would put there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planner.transaction.undo import predicting_kernels as kernels
from planner.transaction.undo.predicting import (
    AFFINE,
    COLUMNS,
    DIVIDE,
    MOST_PRODUCTS,
    NONE,
    PRODUCTS,
    ROWS,
    SCALE,
    Arithmetic,
    Grid,
    Prediction,
    scratch,
)

__all__ = ["fit", "left_over", "letter_bits"]

Patterns = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]

_SAMPLE = 8192  # elements, about
_FEW = 8  # rows, below which nothing that has a parameter for each column can pay
_SPARE = 4  # vectors more than products, so that the last of them are found as well
_WORTH = 3  # times the parameters of one product: what leaves less is not worth looking for products
_REFINED = 4  # products, up to which weights are worth their time
_FLOOR = 2.0**-8  # of its row's root mean square: a number below weighs no more
_TRIED = 64  # rows, about, in which products are looked for first
_CAUGHT = 0.6  # of their squared difference, that so many products must catch for the search to go on


@dataclass(frozen=True, slots=True)
class _Sample:
    given: Patterns
    wanted: Patterns
    grid: Grid
    stands_for: float
    """Elements of the piece for each element of the sample."""
    rows: NDArray[np.intp]
    """Which whole rows of the piece it is made of; none where it is a stretch of elements."""


def fit(arithmetic: Arithmetic, given: Patterns, wanted: Patterns, grid: Grid) -> tuple[Prediction, float]:
    """The predictor that leaves least of one piece, fitted to it; and about how many bits it takes with what it leaves.

    Releases the GIL in its loops.
    """
    sample = _sampled(given, wanted, grid)

    def bits(prediction: Prediction, room: float) -> float:
        predicted = arithmetic.predict(prediction, sample.given, sample.grid)
        return 8 * room + sample.stands_for * left_over(arithmetic.infinity, sample.wanted, predicted, sample.given)

    best = Prediction(NONE, np.empty(0, arithmetic.stored))
    least = bits(best, 0)
    with np.errstate(all="ignore"):  # what is not finite is left out, or gives way below
        some = arithmetic.values(sample.given, "given"), arithmetic.values(sample.wanted, "wanted")
        for family in (ROWS, COLUMNS):
            if family == COLUMNS and sample.rows.size < _FEW:
                continue
            for kind in (SCALE, DIVIDE, AFFINE):
                room = _room(arithmetic, family + kind, grid)
                if 8 * room >= least:
                    continue
                tried = Prediction(family + kind, _fitted(arithmetic, family, kind, *some, sample.grid))
                if (size := bits(tried, room)) < least:
                    best, least = tried, size
        if sample.rows.size >= _FEW and least > _WORTH * 8 * _room(arithmetic, PRODUCTS + 1, grid):
            products = None
            with suppress(np.linalg.LinAlgError):  # numbers so far apart that nothing converges
                products = _products(arithmetic, given, wanted, grid)
            if products is not None:
                room = _room(arithmetic, products.predictor, grid)
                if 8 * room < least and (size := bits(_of_rows(products, grid, sample), room)) < least:
                    return products, size
        if best.predictor != NONE:
            whole = arithmetic.values(given, "given"), arithmetic.values(wanted, "wanted")
            family, kind = (ROWS if best.predictor < COLUMNS else COLUMNS), (best.predictor - ROWS) % 3
            best = Prediction(best.predictor, _fitted(arithmetic, family, kind, *whole, grid))
    return best, least


def left_over(infinity: int, wanted: Patterns, predicted: Patterns, given: Patterns) -> float:
    """Bits, about, of the differences: the entropy of their lengths, and the digits below the leading one."""
    found = scratch("tried", wanted.size, wanted.dtype)
    kernels.differences(wanted, predicted, given, wanted.dtype.type(infinity), found)
    lengths = np.frexp(found.astype(np.float64))[1]
    return letter_bits(lengths) + float(np.maximum(lengths - 1, 0).sum())


def letter_bits(letters: NDArray[Any]) -> float:
    """Bits of some small whole numbers, each by itself: their number times their entropy."""
    counts = np.bincount(letters)
    counts = counts[counts > 0]
    return float((counts * np.log2(letters.size / counts)).sum())


def _sampled(given: Patterns, wanted: Patterns, grid: Grid) -> _Sample:
    """Some of the rows that change; or, where no whole row does, what lies around the middle of what changes."""
    begin, rows = grid.whole
    of_rows = [patterns[begin : begin + rows * grid.length].reshape(rows, grid.length) for patterns in (given, wanted)]
    changed = np.flatnonzero((of_rows[0] != of_rows[1]).any(axis=1))
    if changed.size:
        count = min(max(_SAMPLE // grid.length, 12), changed.size)
        chosen = changed[np.linspace(0, changed.size - 1, count).astype(np.intp)]
        part = Grid(0, grid.length, count * grid.length)
        some = [patterns[chosen].reshape(-1) for patterns in of_rows]
        return _Sample(some[0], some[1], part, changed.size / count, chosen)
    places = np.flatnonzero(given != wanted)
    middle = int(places[places.size // 2]) if places.size else 0
    first = max(min(middle - _SAMPLE // 2, grid.count - _SAMPLE), 0)
    there = slice(first, first + _SAMPLE)
    part = Grid((grid.column + first) % grid.length, grid.length, given[there].size)
    return _Sample(given[there], wanted[there], part, grid.count / part.count, np.empty(0, np.intp))


def _room(arithmetic: Arithmetic, predictor: int, grid: Grid) -> float:
    try:
        return arithmetic.room(predictor, grid)
    except ValueError:
        return np.inf


def _fitted(
    arithmetic: Arithmetic, family: int, kind: int, given: Float64, wanted: Float64, grid: Grid
) -> NDArray[np.floating[Any]]:
    """Parameters for each line, rounded to what is stored; a line that cannot be fitted stays as it is."""
    rows = family == ROWS
    lines = grid.rows if rows else grid.length
    sums = np.zeros((6, lines))
    (kernels.row_sums if rows else kernels.column_sums)(given, wanted, grid.column, grid.length, sums)
    count, g, w, gg, gw, ww = sums
    if kind == AFFINE:
        slope = _finite(((count * gw - g * w) / (count * gg - g * g)).astype(arithmetic.stored), 1)
        return np.concatenate([slope, _finite(((w - slope * g) / count).astype(arithmetic.stored), 0)])
    # Divided is the other way round: given is a·wanted.
    factor = gw / (gg if kind == SCALE else ww)
    low, high = np.full(lines, -np.inf), np.full(lines, np.inf)
    pair = (given, wanted) if kind == SCALE else (wanted, given)
    halves = _halves(arithmetic, pair[1])
    kernels.factor_limits(*pair, halves, grid.column, grid.length, rows, low, high)
    known = (low <= high) & np.isfinite(low) & np.isfinite(high)
    factor = np.where(known, (low + high) / 2, factor)
    factor = np.where(known & (low <= 1) & (high >= 1), 1.0, factor)
    if known.any() and (most := low[known].max()) <= (least := high[known].min()):
        factor = np.where(known, (most + least) / 2, factor)  # one for all takes no room
    stored = _finite(factor.astype(arithmetic.stored), 1)
    return np.where(stored == 0, 1, stored).astype(arithmetic.stored) if kind == DIVIDE else stored


def _limits(arithmetic: Arithmetic) -> Any:
    finfo: Any = ml_dtypes.finfo
    return finfo(arithmetic.dtype.storage)


def _finite(numbers: NDArray[np.floating[Any]], otherwise: float) -> NDArray[np.floating[Any]]:
    return np.where(np.isfinite(numbers), numbers, numbers.dtype.type(otherwise))


def _halves(arithmetic: Arithmetic, values: Float64) -> Float64:
    """Half a unit of the last digit of each value: how far what is rounded to it can be; infinite where that depends.

    It depends on the side at a power of two, and the last digit is another one below the smallest normal number.
    """
    limits = _limits(arithmetic)
    bits = values.view(np.uint64)
    halves = scratch("halves", values.size, np.float64)
    np.bitwise_and(bits, np.uint64(0x7FF << 52), out=halves.view(np.uint64))
    smallest = float(limits.smallest_normal)
    odd = ((bits & np.uint64(2**52 - 1)) == 0) | (halves < smallest)
    halves *= float(limits.eps) / 2
    halves[odd] = np.inf
    return halves


def _products(arithmetic: Arithmetic, given: Patterns, wanted: Patterns, grid: Grid) -> Prediction | None:
    """The outer products that rise above rounding; None if too much is left of the difference."""
    values, difference = arithmetic.values(given, "given"), arithmetic.values(wanted, "wanted")
    values[~np.isfinite(values)] = 0
    difference -= values
    difference[~np.isfinite(difference)] = 0
    begin, rows = grid.whole
    whole = slice(begin, begin + rows * grid.length)
    middle, sizes = difference[whole].reshape(rows, grid.length), np.abs(values[whole]).reshape(rows, grid.length)
    # Of 16 bits, even the sums of float32 leave plenty.
    kind = np.dtype(np.float32 if arithmetic.dtype.itemsize == 2 else np.float64)
    step = max(rows // _TRIED, 1)
    if _basis(_evened(middle[::step], sizes[::step], kind)[0])[1] < _CAUGHT:
        return None
    even, of_rows, of_columns = _evened(middle, sizes, kind)
    basis, _ = _basis(even)
    left = even @ basis
    _, strengths, turned = np.linalg.svd(left, full_matrices=False)
    # A unit of the last digit is at most eps of a number; its square, by 12, is what rounding adds on average.
    noise = float(_limits(arithmetic).eps) / np.sqrt(12)
    above = strengths[:MOST_PRODUCTS] > noise * (np.sqrt(rows) + np.sqrt(grid.length))
    count = int(above.sum())
    if count == 0 or not np.isfinite(strengths).all():
        return None
    left = (left @ turned[:count].T).astype(np.float64) / of_rows
    right = (basis @ turned[:count].T).astype(np.float64) / of_columns.T
    if count <= _REFINED:  # by least squares in which each number weighs as much as its rounding is fine
        weights = 1 / np.maximum(sizes, _FLOOR / of_rows) ** 2
        weighted = weights * middle
        for _ in range(2):
            right = _weighted(left, weights, weighted)
            left = _weighted(right, weights.T, weighted.T)
    stored = right.T.astype(arithmetic.stored)
    used = stored.astype(np.float64)
    found = np.zeros((count, grid.rows))
    found[:, (first := int(begin > 0)) : first + rows] = left.T
    if begin:
        columns = slice(grid.column, grid.column + begin)
        found[:, 0] = np.linalg.lstsq(used[:, columns].T, difference[:begin], rcond=None)[0]
    if (rest := grid.count - begin - rows * grid.length) > 0:
        found[:, -1] = np.linalg.lstsq(used[:, :rest].T, difference[-rest:], rcond=None)[0]
    parameters = np.concatenate([found.astype(arithmetic.stored).reshape(-1), stored.reshape(-1)])
    if arithmetic.dtype.itemsize == 2:  # 16 digits are plenty for numbers of at most 11, and compress to less
        bits = parameters.view(np.uint32)
        bits += np.uint32(0x80)
        bits &= np.uint32(0xFFFFFF00)
    return Prediction(PRODUCTS + count, parameters) if np.isfinite(parameters).all() else None


def _evened(difference: Float64, sizes: Float64, kind: np.dtype[Any]) -> tuple[Any, Float64, Float64]:
    """The difference with rows and columns of the numbers brought to one size, and the factors [m, 1] and [1, n].

    Rounding is coarse where numbers are large; so it becomes alike everywhere, and the rank remains.
    """
    of_rows = _inverse_rms(sizes, 1)
    of_columns = _inverse_rms(sizes * of_rows, 0)
    even = difference * of_rows
    even *= of_columns
    return even.astype(kind, copy=False), of_rows, of_columns


def _basis(even: Any) -> tuple[Any, float]:
    """Orthonormal vectors [n, k] along which the rows of a matrix [m, n] mostly lie; their part of its squared norm."""
    vectors = min(MOST_PRODUCTS + _SPARE, *even.shape)
    energy = float(np.vdot(even, even))
    if not 0 < energy < np.inf:
        return np.empty((even.shape[1], 0), even.dtype), 0.0
    start = np.random.default_rng(0).standard_normal((even.shape[1], vectors), np.float32).astype(even.dtype)
    caught = even.T @ np.linalg.qr(even @ start)[0]
    return np.linalg.qr(caught)[0], float(np.vdot(caught, caught)) / energy


def _inverse_rms(values: Float64, axis: int) -> Float64:
    """One by the root mean square along an axis, which is kept; 1 where that is 0 or beyond all bounds."""
    squares = np.einsum("ij,ij->i" if axis == 1 else "ij,ij->j", values, values) / values.shape[axis]
    found: Float64 = 1 / np.sqrt(np.expand_dims(squares, axis))
    return np.where(np.isfinite(found) & (found > 0), found, 1.0)


def _weighted(known: Float64, weights: Float64, weighted: Float64) -> Float64:
    """The other side of products of which one is known [m, k]: weighted least squares for each column, [n, k].

    `weights` is [m, n], `weighted` the difference [m, n] times it.
    """
    count = known.shape[1]
    pairs = (known[:, :, None] * known[:, None, :]).reshape(len(known), -1)
    squares = (weights.T @ pairs).reshape(-1, count, count)
    # So that columns of zeros, and vectors all but parallel, are solved too.
    little = 1e-12 * np.trace(squares, axis1=1, axis2=2) + np.finfo(np.float64).tiny
    squares += little[:, None, None] * np.eye(count)
    solved: Any = np.linalg.solve(squares, (weighted.T @ known)[:, :, None])[:, :, 0]
    return np.asarray(solved, np.float64)


def _of_rows(products: Prediction, grid: Grid, sample: _Sample) -> Prediction:
    """The same products, for the rows of the sample alone."""
    count = products.predictor - PRODUCTS
    left = products.parameters[: count * grid.rows].reshape(count, grid.rows)
    left = left[:, sample.rows + int(grid.whole[0] > 0)]
    return Prediction(products.predictor, np.concatenate([left.reshape(-1), products.parameters[count * grid.rows :]]))
