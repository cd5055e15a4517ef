"""The numbers of a tensor that a page shows: what each is called, what it means, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from planner.profile import TensorProfile
from planner.profile.spectra import Spectrum

__all__ = ["MEASURES", "Measure", "Number", "spectral"]

Number = float | int | None

_SIZES = {"std", "rms", "abs_max", "l2_norm", "rows_cv", "columns_cv"}
_SIZES |= {"spectral_norm", "stable_rank", "effective_rank", "tail_exponent"}


@dataclass(frozen=True)
class Measure:
    """One number of a tensor."""

    key: str
    label: str
    of: Callable[[TensorProfile], Number]
    about: str
    mapped: bool = True
    """Whether a heat map can show it; if not, it stands in a tensor's detail only."""

    @property
    def ratio(self) -> bool:
        """Whether twice and half are as far from usual: a size, compared by its logarithm."""
        return self.key.removeprefix("spectrum_") in _SIZES


def _field(key: str, label: str, *, mapped: bool = True) -> Measure:
    def of(tensor: TensorProfile) -> Number:
        value: Number = getattr(tensor, key) if tensor.understood else None
        return value

    return Measure(key, label, of, TensorProfile.model_fields[key].description or "", mapped)


def _share(count: Callable[[TensorProfile], int | None]) -> Callable[[TensorProfile], Number]:
    def of(tensor: TensorProfile) -> Number:
        found = count(tensor)
        return found / tensor.elements if tensor.understood and tensor.elements and found is not None else None

    return of


def _outliers(order: str) -> Measure:
    def of(tensor: TensorProfile) -> Number:
        return tensor.outliers.get(order) if tensor.understood else None

    about = f"Elements with |x - mean| > {order} std"
    return Measure(f"outliers_{order}", f"over {order} std", of, about, mapped=False)


MEASURES: tuple[Measure, ...] = (
    _field("std", "std"),
    _field("rms", "rms"),
    _field("mean", "mean"),
    _field("abs_max", "abs max"),
    _field("kurtosis", "kurtosis"),
    _field("skewness", "skewness"),
    Measure(
        "outlier_share",
        "share over 6 std",
        _share(lambda tensor: tensor.outliers.get("6")),
        "Share of the elements with |x - mean| > 6 std",
    ),
    Measure("zero_share", "share of zeros", _share(lambda tensor: tensor.zeros), "Share of the elements that are zero"),
    Measure(
        "rows_cv",
        "row-norm CV",
        lambda tensor: tensor.rows.cv if tensor.rows else None,
        "Coefficient of variation of the l2 norms of the rows",
    ),
    Measure(
        "columns_cv",
        "column-norm CV",
        lambda tensor: tensor.columns.cv if tensor.columns else None,
        "Coefficient of variation of the l2 norms of the columns",
    ),
    _field("l2_norm", "l2 norm"),
    _field("entropy", "entropy"),
    _field("distinct_values", "distinct values"),
    Measure(
        "nonfinite_share",
        "share of NaN and inf",
        _share(lambda tensor: tensor.nan + tensor.inf),
        "Share of the elements that are not a number or infinite",
    ),
    _field("min", "min", mapped=False),
    _field("max", "max", mapped=False),
    _outliers("3"),
    _outliers("6"),
    _field("zeros", "zeros", mapped=False),
    _field("negative_zeros", "negative zeros", mapped=False),
    _field("subnormals", "subnormals", mapped=False),
    _field("nan", "NaN", mapped=False),
    _field("inf", "infinite", mapped=False),
    _field("negative_inf", "of them negative", mapped=False),
)


_MAPPED = {"spectral_norm", "stable_rank", "effective_rank", "tail_exponent"}


def spectral(spectra: Iterable[Spectrum | None]) -> list[Measure]:
    """A measure for every number that these spectra hold: the norm, the ranks, the exponent of the tail."""
    known = [spectrum for spectrum in spectra if spectrum]
    found = []
    for key, field in Spectrum.model_fields.items():
        if any(_number(getattr(spectrum, key)) is not None for spectrum in known):
            label = key.replace("_", " ")
            about = field.description or label
            found.append(Measure(f"spectrum_{key}", label, _of_spectrum(key), about, mapped=key in _MAPPED))
    return found


def _of_spectrum(key: str) -> Callable[[TensorProfile], Number]:
    return lambda tensor: _number(getattr(tensor.spectrum, key)) if tensor.spectrum else None


def _number(value: object) -> Number:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
