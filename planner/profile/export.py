"""A profile as a flat table, one row a tensor: CSV, Arrow or Parquet, for pandas, polars and spreadsheets.

The columns are the scalar fields of the records in `types`, in their order; quantiles are `q0.001`, outliers
`outliers_3`; fields of a row's parts carry its name (`rows_median`, `spectrum_stable_rank`). Of lists only the first
entry is there (`rows_largest_at`, `largest_value`); singular values, heads and experts in full are in the JSON.

A CSV file holds each name exactly as the checkpoint has it, so that it can be joined on: quoted where it must be (RFC
4180), never altered. A spreadsheet that runs text beginning with = + - @ as a formula must be told to import text.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from planner.errors import ExtraMissing, UsageError
from planner.profile.spectra import Spectrum
from planner.profile.types import OUTLIER_ORDERS, QUANTILES, NormSummary, Profile, Statistics, TensorProfile

__all__ = [
    "COLUMNS",
    "Scalar",
    "rows_of",
    "to_arrow",
    "to_arrow_bytes",
    "to_csv_bytes",
    "to_parquet_bytes",
    "writer_of",
]

Scalar = str | int | float | bool | None

_KINDS: tuple[type, ...] = (str, int, float, bool)


def _scalars(record: type[BaseModel]) -> Iterator[tuple[str, type]]:
    """The fields of a record that hold one scalar or null, with its type."""
    for name, field in record.model_fields.items():
        if kind := _scalar(field.annotation):
            yield name, kind


def _scalar(annotation: Any) -> type | None:
    if typing.get_origin(annotation) is typing.Literal:
        return str
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        left = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _scalar(left[0]) if len(left) == 1 else None
    return annotation if annotation in _KINDS else None


def _columns() -> dict[str, type]:
    columns: dict[str, type] = {}
    for name, field in TensorProfile.model_fields.items():
        if name not in Statistics.model_fields and (kind := _scalar(field.annotation)):
            columns[name] = kind
        if name == "shape":
            columns[name] = str
    columns |= dict(_scalars(Statistics))
    columns |= dict.fromkeys((f"q{quantile:g}" for quantile in QUANTILES), float)
    columns |= dict.fromkeys((f"outliers_{order}" for order in OUTLIER_ORDERS), int)
    for side in ("rows", "columns"):
        columns |= {f"{side}_{name}": kind for name, kind in _scalars(NormSummary)}
        columns |= {f"{side}_smallest_at": int, f"{side}_largest_at": int}
    columns |= {"largest_index": str, "largest_value": float, "heads": int, "experts": int}
    return columns | {f"spectrum_{name}": kind for name, kind in _scalars(Spectrum)}


COLUMNS: dict[str, type] = _columns()
"""Every column in order, with the type of what is not null in it: str, int, float or bool."""


def rows_of(profile: Profile) -> list[dict[str, Scalar]]:
    """One flat row a tensor, with the keys of `COLUMNS`. Shapes and indices are text such as `96x192` and `1,2533`."""
    return [_row(tensor) for tensor in profile.tensors]


def _row(tensor: TensorProfile) -> dict[str, Scalar]:
    row: dict[str, Scalar] = dict.fromkeys(COLUMNS)
    for name in COLUMNS.keys() & TensorProfile.model_fields.keys():
        row[name] = getattr(tensor, name)
    row["shape"] = "x".join(map(str, tensor.shape))
    row |= {f"q{key}": value for key, value in tensor.quantiles.items() if f"q{key}" in row}
    row |= {f"outliers_{order}": count for order, count in tensor.outliers.items() if f"outliers_{order}" in row}
    for side, norms in (("rows", tensor.rows), ("columns", tensor.columns)):
        if norms is not None:
            row |= {f"{side}_{name}": getattr(norms, name) for name, _ in _scalars(NormSummary)}
            row[f"{side}_smallest_at"] = next(iter(norms.smallest_at), None)
            row[f"{side}_largest_at"] = next(iter(norms.largest_at), None)
    if tensor.largest:
        row["largest_index"] = ",".join(map(str, tensor.largest[0].index))
        row["largest_value"] = tensor.largest[0].value
    row["heads"] = sum(len(heads.norms) for heads in tensor.heads) or None
    row["experts"] = tensor.experts.count if tensor.experts else None
    if tensor.spectrum is not None:
        row |= {f"spectrum_{name}": getattr(tensor.spectrum, name) for name, _ in _scalars(Spectrum)}
    return row


def to_csv_bytes(profile: Profile) -> bytes:
    """The table as CSV in UTF-8 with a heading line: floats to the last digit, null as nothing."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # CR LF and doubled quotes, as RFC 4180 has it; repr for floats
    writer.writerow(COLUMNS)
    writer.writerows(row.values() for row in rows_of(profile))
    return text.getvalue().encode()


def to_arrow(profile: Profile) -> Any:
    """The table as a `pyarrow.Table`: int64, float64, bool and string columns with nulls.

    Its metadata hold, under `planner`, a JSON object with fingerprint, name and the like. Raises `ExtraMissing` where
    pyarrow is not installed.
    """
    arrow = _arrow()
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    about = profile.model_dump(mode="json", include={"schema_", "name", "fingerprint", "created", "planner_version"})
    schema = arrow.schema(
        [(name, kinds[kind]) for name, kind in COLUMNS.items()], metadata={"planner": json.dumps(about)}
    )
    return arrow.Table.from_pylist(rows_of(profile), schema=schema)


def to_arrow_bytes(profile: Profile) -> bytes:
    """The table as an Arrow IPC file (Feather version 2). Raises `ExtraMissing`."""
    table, arrow = to_arrow(profile), _arrow()
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def to_parquet_bytes(profile: Profile) -> bytes:
    """The table as a Parquet file. Raises `ExtraMissing`."""
    table, arrow = to_arrow(profile), _arrow()
    sink = arrow.BufferOutputStream()
    importlib.import_module("pyarrow.parquet").write_table(table, sink)
    return bytes(sink.getvalue())


_WRITERS: dict[str, Callable[[Profile], bytes]] = {
    ".csv": to_csv_bytes,
    ".parquet": to_parquet_bytes,
    ".arrow": to_arrow_bytes,
}


def writer_of(name: str) -> Callable[[Profile], bytes]:
    """What makes the bytes of a file called `name`, by how that ends: .csv, .parquet or .arrow.

    Raises `UsageError` for any other name, and `ExtraMissing` at once where the writer needs pyarrow.
    """
    for suffix, writer in _WRITERS.items():
        if name.lower().endswith(suffix):
            if writer is not to_csv_bytes:
                _arrow()
            return writer
    raise UsageError(f"no format is known for {name}", hint="end the name in .csv, .parquet or .arrow")


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ExtraMissing(
            f"Arrow and Parquet need pyarrow, which cannot be imported: {error}",
            hint="pip install 'model-patch-planner[arrow]' (in a checkout: '.[arrow]'), or export to a .csv file",
        ) from None
