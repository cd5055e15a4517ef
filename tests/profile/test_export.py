"""A profile as a table: what is in it, and that every number comes back as it was."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.checkpoint import open_checkpoint
from planner.errors import ExtraMissing, UsageError
from planner.profile import Profile, TensorProfile, profile_checkpoint
from planner.profile.export import (
    COLUMNS,
    rows_of,
    to_arrow,
    to_arrow_bytes,
    to_csv_bytes,
    to_parquet_bytes,
    writer_of,
)

NORMS = {"count": 3, "min": 0.1, "median": 0.2, "max": 0.30000000000000004, "cv": None}
SPECTRUM = {"method": "exact", "singular_values": [2.0, 1.0], "known": 2, "resolution": 1e-16, "spectral_norm": 2.0}


def tensor(name: str = "w", **fields: Any) -> TensorProfile:
    given = {"name": name, "role": "w", "layer": None, "dtype": "F32", "shape": [3, 2], "elements": 6, "digest": "d"}
    return TensorProfile.model_validate({**given, "understood": True, **fields})


def profile(*tensors: TensorProfile) -> Profile:
    return Profile(
        name="m",
        fingerprint="blake3:1234",
        created="2026-01-01T00:00:00Z",
        planner_version="0",
        model_type=None,
        tied_embeddings=None,
        parameters=6,
        bytes=24,
        tensors=tensors,
    )


FULL = tensor(
    layer=3,
    expert=2,
    mean=0.1 + 0.2,
    zeros=5,
    quantiles={"0.001": -1.5, "0.999": 1.5},
    outliers={"3": 2, "6": 1},
    rows={**NORMS, "smallest_at": [2, 0], "largest_at": [1]},
    heads=[{"part": "key", "axis": "rows", "width": 1, "norms": [1, 2, 3]}],
    largest=[{"index": [1, 1], "value": -3.5}, {"index": [0, 0], "value": 1}],
    spectrum=SPECTRUM,
)


def test_a_row_holds_the_scalars_and_the_first_of_each_list() -> None:
    [row] = rows_of(profile(FULL))
    assert list(row) == list(COLUMNS)
    expected = {
        **{"name": "w", "layer": 3, "expert": 2, "shape": "3x2", "elements": 6, "understood": True},
        **{"mean": 0.30000000000000004, "std": None, "zeros": 5, "q0.001": -1.5, "q0.5": None, "q0.999": 1.5},
        **{"outliers_3": 2, "outliers_6": 1, "rows_count": 3, "rows_median": 0.2, "rows_max": 0.30000000000000004},
        **{"rows_cv": None, "rows_smallest_at": 2, "rows_largest_at": 1, "columns_count": None},
        **{"largest_index": "1,1", "largest_value": -3.5, "heads": 3, "experts": None},
        **{"spectrum_method": "exact", "spectrum_known": 2, "spectrum_spectral_norm": 2.0},
        **{"spectrum_stable_rank": None},
    }
    assert {name: row[name] for name in expected} == expected


def test_a_column_has_one_type() -> None:
    whole = ("layer", "expert", "nan", "outliers_3", "rows_count", "columns_smallest_at", "heads", "spectrum_known")
    assert {COLUMNS[name] for name in whole} == {int}
    assert {COLUMNS[name] for name in ("std", "q0.5", "rows_cv", "largest_value", "spectrum_stable_rank")} == {float}
    assert (COLUMNS["understood"], COLUMNS["shape"], COLUMNS["largest_index"]) == (bool, str, str)


def test_every_scalar_of_a_tensor_has_a_column() -> None:
    document = FULL.model_dump(mode="json")
    scalars = {name for name, value in document.items() if not isinstance(value, (list, dict))}
    assert scalars - {"rows", "columns", "experts", "spectrum"} <= COLUMNS.keys()


def test_the_tables_of_a_real_model_agree_with_its_profile(tiny_model) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    found = profile_checkpoint(open_checkpoint(tiny_model))
    rows = rows_of(found)
    assert to_arrow(found).to_pylist() == rows
    assert parquet.read_table(io.BytesIO(to_parquet_bytes(found))).to_pylist() == rows
    assert arrow.ipc.open_file(to_arrow_bytes(found)).read_all().to_pylist() == rows
    for line, row, measured in zip(read(to_csv_bytes(found)), rows, found.tensors, strict=True):
        assert (row["name"], row["std"], row["q0.25"]) == (measured.name, measured.std, measured.quantiles["0.25"])
        assert float(line["std"]) == measured.std, "to the last digit"
        assert line["shape"] == "x".join(map(str, measured.shape))
        assert line["layer"] == ("" if measured.layer is None else str(measured.layer))


def test_arrow_columns_are_typed_even_where_all_is_null_and_carry_the_fingerprint() -> None:
    arrow = pytest.importorskip("pyarrow")
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    for table in (to_arrow(profile(tensor())), to_arrow(profile())):
        assert [(field.name, field.type) for field in table.schema] == [(n, kinds[k]) for n, k in COLUMNS.items()]
        assert json.loads(table.schema.metadata[b"planner"])["fingerprint"] == "blake3:1234"
    assert to_arrow(profile(tensor())).column("std").null_count == 1


def read(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1", "@x", 'a,"b"', "a\r\nb\nc", "naïve 漢字", "", " "])
def test_a_name_comes_back_from_csv_as_it_is(name: str) -> None:
    [row] = read(to_csv_bytes(profile(tensor(name))))
    assert row["name"] == name
    assert len(row) == len(COLUMNS)


def test_csv_is_as_the_rfc_has_it() -> None:
    data = to_csv_bytes(profile(tensor('say "a", b')))
    assert data.startswith(b"name,role,layer,expert,dtype,shape,")
    assert data.endswith(b"\r\n")
    assert data.splitlines()[1].startswith(b'"say ""a"", b",w,,,F32,3x2,6,')


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(value: float) -> None:
    [row] = read(to_csv_bytes(profile(tensor(mean=value))))
    assert float(row["mean"]) == value


def test_without_pyarrow_there_is_csv_and_an_error_that_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for function in (to_arrow, to_parquet_bytes, to_arrow_bytes):
        with pytest.raises(ExtraMissing) as caught:
            function(profile(FULL))
        assert "[arrow]" in caught.value.hint
    with pytest.raises(ExtraMissing):
        writer_of("x.parquet")
    assert writer_of("x.csv")(profile(FULL)) == to_csv_bytes(profile(FULL))


def test_the_name_says_the_format() -> None:
    pytest.importorskip("pyarrow")
    assert (writer_of("a/b.CSV"), writer_of("b.parquet"), writer_of("b.arrow")) == (
        *(to_csv_bytes, to_parquet_bytes),
        to_arrow_bytes,
    )
    for name in ("profile.xlsx", "csv", ""):
        with pytest.raises(UsageError) as caught:
            writer_of(name)
        assert ".csv, .parquet or .arrow" in caught.value.hint
