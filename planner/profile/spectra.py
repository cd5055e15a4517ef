"""The singular values of one matrix, in bounded memory, from blocks of its rows. Knows no file format.

How, for sides long >= short, all in float64 and scaled by a power of two so that nothing overflows:

- up to 2^22 elements: LAPACK's SVD of the whole; every singular value to about long·2^-52 of the largest, s₁;
- larger, short up to 4096: LAPACK's eigenvalues of the Gram matrix [short, short], summed over panels. Their roots are
  as good for the leading values; those below sqrt(long·2^-52)·s₁ (1e-6 to 6e-6 of s₁) drown in rounding;
- larger still: scikit-learn's randomised SVD (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1) of the Gram
  matrix: 256 values, 256 more for accuracy, 4 power iterations, each worth two of the matrix itself. The values err
  downwards; on a normal matrix of side 8192, a hard case, by 0.07 % for the first ten and 0.7 % for all 256.

Memory, besides the blocks: at most about 3·short² float64 numbers or 150 MB (4096 x 14336: 370 MB; 8192 x 28672:
850 MB). The rows are read twice if m >= n; else a panel is a range of columns, and they are read up to 2 + 2·n/m times.

Definitions: stable rank = ‖W‖²_F/s₁² (Rudelson and Vershynin 2007). Effective rank = exp(-Σ pᵢ ln pᵢ), pᵢ = sᵢ/Σs (Roy
and Vetterli 2007). Tail: the k eigenvalues λ = s² of the Gram matrix from λ_min up are taken to have the density
λ^-alpha; alpha is the continuous maximum-likelihood estimate 1 + k/Σ ln(λᵢ/λ_min), (alpha-1)/sqrt(k) its standard
error, and λ_min that eigenvalue for which the Kolmogorov-Smirnov distance is least (Clauset, Shalizi and Newman 2009,
equations 3.1, 3.2 and 3.9; of weights first by Martin and Mahoney).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import ExtraMissing
from planner.records import Record

__all__ = ["LEADING", "Rows", "Spectrum", "require_extra", "spectrum_of"]

Rows = Callable[[], Iterable[NDArray[np.float32] | NDArray[np.float64]]]
"""Gives the matrix as blocks of consecutive rows [any, n], from the beginning each time it is called."""

LEADING = 10
"""How many singular values are reported."""

_WHOLE = 2**22  # elements; 2048 x 2048 takes 1.4 s on 2 cores
_EXACT_SIDE = 4096  # where the randomised SVD begins to be the faster: 3.6 s both, at 6144 12 s against 6
_KNOWN = 256
_OVERSAMPLES = 256  # with 64, values near the 256th are 1.5 % low, and the tail fit stands on them
_POWER_ITERATIONS = 4
_STRIP = 512  # rows of the Gram matrix updated at a time: only the upper triangle, without a second [s, s]
_LEAST_TAIL = 10
_LEAST_SPREAD = 1e-6  # mean ln(λ/λ_min) of a tail; below it, the eigenvalues differ by rounding only


class Spectrum(Record):
    """The singular values of a matrix and what follows from them; null where there is nothing to say."""

    method: Literal["exact", "randomised"]
    """How they were computed. randomised: leading values only, within 1 % and never above the true ones."""
    singular_values: tuple[float, ...]
    """The largest ones, at most 10, in descending order."""
    known: int
    """How many singular values were computed, all of them if exact; the rest of the record uses these."""
    resolution: float
    """Singular values below this cannot be told from rounding and count as 0."""
    spectral_norm: float
    """The largest singular value."""
    stable_rank: float | None = None
    """Sum of the squared singular values over the largest squared; null for a matrix of zeros."""
    effective_rank: float | None = None
    """exp of the entropy of the singular values divided by their sum; null if not all are known."""
    effective_rank_at_least: float | None = None
    """Lower bound of the effective rank; equal to it if exact."""
    effective_rank_at_most: float | None = None
    """Upper bound of the effective rank; equal to it if exact."""
    tail_exponent: float | None = None
    """alpha of the density eigenvalue^-alpha fitted to the largest eigenvalues, the squared singular values."""
    tail_exponent_error: float | None = None
    """Standard error of the tail exponent, given where the tail begins and that it is a power law."""
    tail_from: float | None = None
    """Smallest singular value in the fit; its square is the smallest eigenvalue, lambda_min."""
    tail_to: float | None = None
    """Largest singular value in the fit."""
    tail_values: int | None = None
    """How many eigenvalues are in the fit, at least 10; if not exact, a tail longer than `known` cannot be seen."""
    tail_distance: float | None = None
    """Kolmogorov-Smirnov distance of the fit, 0 to 1: how far the power law is from the eigenvalues it is fitted to."""


def spectrum_of(rows: Rows, shape: tuple[int, int], *, seed: int = 0) -> Spectrum | None:
    """The spectrum of a matrix of that shape [m, n], float32 or float64. `seed` only moves a randomised one.

    None if a side is 0, if an element is not finite, or if the largest singular value is beyond float64. The result
    does not depend on how the rows are cut into blocks. Raises ValueError if the blocks are not of that shape, and
    ExtraMissing without scikit-learn where min(m, n) > 4096.
    """
    short, long = min(shape), max(shape)
    whole = short * long <= _WHOLE
    exact = whole or short <= _EXACT_SIDE
    randomized_svd = None if exact else _library()
    magnitude = _magnitude(rows, shape)
    if magnitude is None or short == 0:
        return None
    if magnitude == 0:
        zeros = (0.0,) * min(short, LEADING)
        return Spectrum(method="exact", singular_values=zeros, known=short, resolution=0.0, spectral_norm=0.0)
    # Largest magnitude in [0.5, 1): no square overflows, and those that underflow are below rounding.
    exponent = math.frexp(magnitude)[1]
    panels = _panels(rows, shape, exponent)
    rounding = long * float(np.finfo(np.float64).eps)
    if whole:
        sigma: NDArray[np.float64] = np.linalg.svd(next(panels), compute_uv=False).astype(np.float64, copy=False)
        energy = float(sigma @ sigma)
    else:
        gram = _gram(panels, short)
        energy, rounding = float(np.trace(gram)), math.sqrt(rounding)
        if randomized_svd is None:
            squares = np.linalg.eigvalsh(gram)[::-1]
        else:
            squares = _leading_eigenvalues(gram, randomized_svd, seed)
        sigma = np.sqrt(np.maximum(squares, 0.0))
    if math.frexp(sigma[0])[1] + exponent > np.finfo(np.float64).maxexp:
        return None
    resolution = float(rounding * sigma[0])
    sigma[sigma < resolution] = 0.0
    lowest, highest = _effective_rank_bounds(sigma, energy, short)
    return Spectrum(
        method="exact" if exact else "randomised",
        singular_values=tuple(math.ldexp(value, exponent) for value in sigma[:LEADING].tolist()),
        known=len(sigma),
        resolution=math.ldexp(resolution, exponent),
        spectral_norm=math.ldexp(float(sigma[0]), exponent),
        stable_rank=energy / float(sigma[0]) ** 2,
        effective_rank=lowest if exact else None,
        effective_rank_at_least=lowest,
        effective_rank_at_most=highest,
        **_tail(sigma[sigma > 0], exponent),
    )


def require_extra(shapes: Iterable[tuple[int, ...]]) -> None:
    """Raises `ExtraMissing` if a matrix of one of these shapes needs a library that is not installed."""
    if any(len(shape) > 1 and min(shape[-2:]) > _EXACT_SIDE for shape in shapes):
        _library()


def _library() -> Callable[..., Any]:
    try:
        return importlib.import_module("sklearn.utils.extmath").randomized_svd  # type: ignore[no-any-return]
    except ImportError as error:
        raise ExtraMissing(
            f"the spectrum of a matrix with both sides above {_EXACT_SIDE} needs scikit-learn, "
            f"which cannot be imported: {error}",
            hint="install the extra: pip install 'model-patch-planner[spectra]' (in a checkout: '.[spectra]')",
        ) from None


def _magnitude(rows: Rows, shape: tuple[int, int]) -> float | None:
    """The largest magnitude; None if an element is not finite. Raises ValueError for blocks of another shape."""
    height, largest = 0, 0.0
    for block in rows():
        if block.ndim != 2 or block.shape[1] != shape[1]:
            raise ValueError(f"a block of shape {block.shape} in a matrix of shape {shape}")
        height += len(block)
        if block.size:
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                return None
            largest = max(largest, -low, high)
    if height != shape[0]:
        raise ValueError(f"{height} rows in a matrix of shape {shape}")
    return largest


def _panels(rows: Rows, shape: tuple[int, int], exponent: int) -> Iterator[NDArray[np.float64]]:
    """The matrix times 2^-exponent, its long side first, in panels [some, s]: always the same, whatever the blocks.

    The memory of a panel is used again for the next one.
    """
    short, long = min(shape), max(shape)
    tall = shape[0] >= shape[1]
    # A panel of columns costs a reading of all rows: as large as the Gram matrix allows, then.
    most = min(long, max(1, (_WHOLE if tall else max(_WHOLE, short**2 // 2)) // short))
    if tall:
        panel = np.empty((most, short))
        filled = 0
        for block in rows():
            used = 0
            while used < len(block):
                taken = min(most - filled, len(block) - used)
                panel[filled : filled + taken] = block[used : used + taken]
                filled, used = filled + taken, used + taken
                if filled == most:
                    yield np.ldexp(panel, -exponent, out=panel)
                    filled = 0
        if filled:
            yield np.ldexp(panel[:filled], -exponent, out=panel[:filled])
        return
    panel = np.empty((short, most))
    for left in range(0, long, most):
        part = panel[:, : min(most, long - left)]
        top = 0
        for block in rows():
            part[top : top + len(block)] = block[:, left : left + most]
            top += len(block)
        yield np.ldexp(part, -exponent, out=part).T


def _gram(panels: Iterable[NDArray[np.float64]], side: int) -> NDArray[np.float64]:
    """PᵀP of all panels P together, [side, side]."""
    gram = np.zeros((side, side))
    for panel in panels:
        for top in range(0, side, _STRIP):
            gram[top : top + _STRIP, top:] += panel[:, top : top + _STRIP].T @ panel[:, top:]
    for top in range(0, side, _STRIP):
        gram[top + _STRIP :, top : top + _STRIP] = gram[top : top + _STRIP, top + _STRIP :].T
    return gram


def _leading_eigenvalues(
    gram: NDArray[np.float64], randomized_svd: Callable[..., Any], seed: int
) -> NDArray[np.float64]:
    """The largest eigenvalues of a positive semidefinite matrix (its singular values), descending, from below."""
    _, values, _ = randomized_svd(
        gram,
        n_components=min(_KNOWN, len(gram)),
        n_oversamples=_OVERSAMPLES,
        n_iter=_POWER_ITERATIONS,
        power_iteration_normalizer="LU",
        random_state=seed,
    )
    return np.asarray(values, dtype=np.float64)


def _effective_rank_bounds(sigma: NDArray[np.float64], energy: float, side: int) -> tuple[float, float]:
    """Between which numbers the effective rank lies, from the largest of `side` singular values and the sum of squares.

    Let s_k be the least value known, r the number of unknown ones t and R what they add to the sum of squares. With T
    the sum of the unknown, concavity of -t·ln t puts the entropy below that of T/r each, which grows with T, and
    T <= sqrt(r·R) (Cauchy-Schwarz): at most r values of sqrt(R/r). As -t·ln t >= -t·ln s_k for t <= s_k, it is at
    least that of T/s_k values of s_k, which grows with T as well, and T >= R/s_k: at least R/s_k² values of s_k.
    """
    unknown = side - len(sigma)
    last = float(sigma[-1])
    rest = max(energy - float(sigma @ sigma), 0.0)
    if unknown == 0 or last == 0.0 or rest == 0.0:
        rank = _effective_rank(sigma, 0.0, 1.0)
        return rank, rank
    lowest = _effective_rank(sigma, min(rest / last**2, unknown), last)
    highest = _effective_rank(sigma, unknown, math.sqrt(rest / unknown))
    return lowest, highest


def _effective_rank(sigma: NDArray[np.float64], copies: float, of: float) -> float:
    """The effective rank of the positive ones of some singular values, and of so many copies of one more."""
    positive = sigma[sigma > 0]
    total = float(positive.sum()) + copies * of
    entropy = -float((positive * np.log(positive / total)).sum()) - copies * of * math.log(of / total)
    return math.exp(entropy / total)


def _tail(sigma: NDArray[np.float64], exponent: int) -> dict[str, Any]:
    """The fields of the tail fit to positive singular values, descending, times 2^exponent; {} if there is no fit."""
    logs = 2 * np.log(sigma)
    sums = np.cumsum(logs)
    best: tuple[float, int, float] | None = None
    for count in range(_LEAST_TAIL, len(logs) + 1):
        if count < len(logs) and logs[count] == logs[count - 1]:
            continue  # λ_min stands for all eigenvalues equal to it
        spread = float(sums[count - 1] / count - logs[count - 1])
        if spread < _LEAST_SPREAD:
            continue
        above = np.exp((logs[count - 1] - logs[:count]) / spread)  # what the fit says is larger; from large to small
        places = np.arange(count) / count
        distance = float(max(np.max(above - places), np.max(places + 1 / count - above)))
        if best is None or distance < best[0]:
            best = distance, count, spread
    if best is None:
        return {}
    distance, count, spread = best
    return {
        "tail_exponent": 1 + 1 / spread,
        "tail_exponent_error": 1 / (spread * math.sqrt(count)),
        "tail_from": math.ldexp(float(sigma[count - 1]), exponent),
        "tail_to": math.ldexp(float(sigma[0]), exponent),
        "tail_values": count,
        "tail_distance": distance,
    }
