"""From a target's words for elements to rows, columns and ranges of values of one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.architecture import Band, head_layout, role_of
from planner.checkpoint import Tensor, TokensUnresolved, find_tokens
from planner.dtypes import FloatDtype
from planner.edits.surroundings import Surroundings
from planner.edits.types import Unresolved
from planner.operations import EVERYTHING, Columns, Rows, Selection, ValueRanges, numbers_in
from planner.operations.quantiles import Of, Side
from planner.plan.elements import (
    AllElements,
    ColumnElements,
    Elements,
    HeadElements,
    MagnitudeQuantile,
    RowElements,
    SignedQuantile,
    TokenElements,
    ValueRange,
)

__all__ = ["as_matrix", "band_selection", "indices_within", "selection_of"]


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A shape as [rows, columns]: leading dimensions are rows, a vector is one row."""
    rows = 1
    for length in shape[:-1]:
        rows *= length
    return rows, shape[-1] if shape else 1


def selection_of(
    elements: Elements, tensor: Tensor, dtype: FloatDtype, around: Surroundings
) -> tuple[Selection, tuple[str, ...]]:
    """Which elements of the tensor are meant, and notes for a reviewer. Raises `Unresolved`."""
    rows, columns = as_matrix(tensor.shape)
    match elements:
        case AllElements():
            return EVERYTHING, ()
        case RowElements():
            return Rows(indices_within(elements.indices, rows, f"rows of {tensor.name}")), ()
        case ColumnElements():
            return Columns(indices_within(elements.indices, columns, f"columns of {tensor.name}")), ()
        case HeadElements():
            band = _head_band(elements, tensor, around)
            heads = indices_within(elements.heads, len(band.indices), f"{band.part} heads of {tensor.name}")
            return band_selection(band, heads), ()
        case TokenElements():
            return _tokens(elements, tensor, around)
        case ValueRange():
            low = -np.inf if elements.minimum is None else elements.minimum
            high = np.inf if elements.maximum is None else elements.maximum
            return ValueRanges(((low, high),)), ()
        case MagnitudeQuantile() | SignedQuantile():
            return _beyond(elements, tensor, dtype, around)


def indices_within(text: str, count: int, what: str) -> NDArray[np.int64]:
    """The numbers of a list, sorted, each once. Raises `Unresolved` where one is too large."""
    wanted = sorted(set(numbers_in(text)))
    if wanted and wanted[-1] >= count:
        raise Unresolved(f"no {wanted[-1]} among the {what}", hint=f"there are {count}, counted from 0")
    return np.asarray(wanted, dtype=np.int64)


def band_selection(band: Band, units: NDArray[np.int64]) -> Selection:
    """The rows or columns of some heads or neurons."""
    indices = np.sort(band.indices[units].reshape(-1))
    return Rows(indices) if band.axis == "rows" else Columns(indices)


def _head_band(elements: HeadElements, tensor: Tensor, around: Surroundings) -> Band:
    bands = _bands(tensor, around)
    fitting = [band for band in bands if elements.part in (None, band.part)]
    if len(fitting) == 1:
        return fitting[0]
    if not bands:
        raise Unresolved(
            f"it is not known where heads lie in {tensor.name}",
            hint=around.model.reason or "name an attention projection",
        )
    there = ", ".join(band.part for band in bands)
    raise Unresolved(f"{tensor.name} holds heads of {there}", hint="say which with `part`")


def _bands(tensor: Tensor, around: Surroundings) -> list[Band]:
    known = around.model.parameters.get(tensor.name)
    if known:
        return [band for band in known.bands if band.unit == "head"]
    layout = head_layout(role_of(tensor.name).role, tensor.shape, around.checkpoint.config)
    return [
        Band(band.part, "head", band.axis, band.start + np.arange(band.count * band.width).reshape(band.count, -1))
        for band in layout
    ]


def _tokens(elements: TokenElements, tensor: Tensor, around: Surroundings) -> tuple[Selection, tuple[str, ...]]:
    known = around.model.parameters.get(tensor.name)
    vocabulary = around.checkpoint.config.get("vocab_size")
    is_table = (
        known.part in ("embedding", "head") if known else len(tensor.shape) == 2 and tensor.shape[0] == vocabulary
    )
    if not is_table:
        raise Unresolved(f"the rows of {tensor.name} are not tokens", hint="name the embedding or the output head")
    try:
        choice = find_tokens(
            around.checkpoint.path,
            texts=elements.texts,
            ids=elements.ids,
            each=elements.each,
            spaces=elements.spaces,
            rows=tensor.shape[0],
        )
    except TokensUnresolved as error:
        raise Unresolved(str(error), hint=error.hint) from None
    notes = []
    for token in choice.tokens:
        also = "" if token.sibling_id is None else f"; not {token.sibling_text!r}, which is {token.sibling_id}"
        if token.sibling_id in choice.ids:
            also = ""
        notes.append(f"token {token.id} is {token.text!r}{also}")
    return Rows(np.asarray(sorted(choice.ids), dtype=np.int64)), tuple(notes)


def _beyond(
    elements: MagnitudeQuantile | SignedQuantile, tensor: Tensor, dtype: FloatDtype, around: Surroundings
) -> tuple[Selection, tuple[str, ...]]:
    of: Of = "magnitude" if isinstance(elements, MagnitudeQuantile) else "value"
    side: Side = "below" if elements.above is None else "above"
    quantile = elements.below if elements.above is None else elements.above
    assert quantile is not None, "the record sees to it"
    found = around.beyond_quantile(tensor, dtype, quantile, of, side)
    if found.threshold is None:
        return found.ranges, ()
    sign = "|w|" if of == "magnitude" else "w"
    relation = ">=" if side == "above" else "<="
    note = f"{tensor.name}: {found.count:,} of {tensor.elements:,} elements, {sign} {relation} {found.threshold:.6g}"
    return found.ranges, (note,)
