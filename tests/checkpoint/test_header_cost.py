"""What a hostile file costs: sizes are checked before anything is allocated, and counts before anything is parsed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import write_shard
from header_files import entry, written

from planner.checkpoint import open_checkpoint
from planner.checkpoint.header import read_header
from planner.errors import ConfigMalformed, HeaderMalformed, ShardMissing, ShardTruncated

INDEX = "model.safetensors.index.json"


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Fail where more memory is taken in between."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001, 32 * 2**20 + 1])
def test_a_lie_about_the_headers_length_costs_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(600 * 2**20)  # sparse
    with at_most(2**20), pytest.raises(HeaderMalformed, match="claims a header of"):
        read_header(path)


def test_a_header_longer_than_the_file_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 32 * 2**20) + b"{}")
    with at_most(2**20), pytest.raises(ShardTruncated):
        read_header(path)


# Each of these is small, and as objects of Python ten to thirty times as large.
DENSE = {
    "lists": ('{"a":[' + "[]," * 800_000 + "[]]}", "[ stands in it 800,002 times"),
    "objects": ('{"a":[' + "{}," * 600_000 + "{}]}", "{ stands in it 600,002 times"),
    "keys": ('{"a":0' + ',"b":0' * 1_300_000 + "}", ": stands in it 1,300,001 times"),
    "numbers": ('{"a":[' + "0," * 2_300_000 + "0]}", ", stands in it 2,300,000 times"),
    "strings": ('{"a":[' + '"b",' * 2_300_000 + "0]}", ", stands in it 2,300,000 times"),
    "nestings": ('{"":' * 1_000_000, "{ stands in it 1,000,000 times"),
}


@pytest.mark.parametrize("what", DENSE)
def test_a_header_dense_with_values_is_refused_before_the_first_is_made(what: str, tmp_path: Path) -> None:
    text, why = DENSE[what]
    path = written(tmp_path, text)
    with at_most(2 * len(text) + 2**20), pytest.raises(HeaderMalformed) as refused:
        read_header(path)
    assert why in refused.value.message


@pytest.mark.parametrize(("value", "why"), [("0", "250,003 tensors"), ("{}", "more than 250,000 tensors")])
def test_more_tensors_than_any_model_has_are_refused(value: str, why: str, tmp_path: Path) -> None:
    many = ",".join(f'"{n}":{value}' for n in range(250_003))
    with pytest.raises(HeaderMalformed, match=why):
        read_header(written(tmp_path, "{" + many + "}"))


@pytest.mark.parametrize("character", ["a", "é", "\U0001f600", "\\u0061", "\\ud83d\\ude00", '\\"', "\\\\", "{", ","])
@pytest.mark.parametrize("where", ['{"%s":0}', '{"__metadata__":{"a":"%s"}}', '{"__metadata__":{"%s":""}}'])
def test_a_string_of_any_length_is_refused_in_a_short_message(where: str, character: str, tmp_path: Path) -> None:
    with pytest.raises(HeaderMalformed, match=r"longer than 512 bytes|more than 65,536 bytes") as refused:
        read_header(written(tmp_path, where % (character * 200_000)))
    assert len(refused.value.message) < len(str(tmp_path)) + 1000


PEAK = """
import re, sys
from pathlib import Path
from planner.checkpoint import open_checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
print(len(open_checkpoint(Path(sys.argv[1])).tensors), peak() - before)
"""


def test_as_many_tensors_as_are_read_fit_in_a_few_hundred_megabytes(tmp_path: Path) -> None:
    fields = (
        f'"model.layers.{n // 4000}.mlp.experts.{n % 4000}.w":'
        f'{{"dtype":"BF16","shape":[8,16],"data_offsets":[{n * 256},{n * 256 + 256}]}}'
        for n in range(250_000)
    )
    path = written(tmp_path, "{" + ",".join(fields) + "}")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 250_000 * 256)  # sparse
    asked = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    count, megabytes = map(int, asked.stdout.split())
    assert count == 250_000
    assert megabytes < 400


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from planner.checkpoint import open_checkpoint
from planner.errors import FileUnreadable
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 16 * 2**20,) * 2)
try:
    open_checkpoint(Path(sys.argv[1]))
except FileUnreadable as error:
    print(error.message)
"""


def test_a_header_that_does_not_fit_in_memory_is_said_to_be_so(tmp_path: Path) -> None:
    written(tmp_path, json.dumps({"a": entry()}) + " " * (30 * 2**20), b"1234")
    asked = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "do not fit in memory" in asked.stdout


# The JSON files beside the shards


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "text", ['{"a":[' + "[]," * 200_000 + "[]]}", '{"a":[' + "0," * 1_300_000 + "0]}", '{"a":0' + ',"a":0' * 1_300_000]
)
def test_a_json_file_dense_with_values_is_refused_before_the_first_is_made(
    name: str, text: str, tmp_path: Path
) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ("U8", (1,), b"x")})
    (tmp_path / name).write_text(text)
    with at_most(3 * len(text) + 2**20), pytest.raises((ConfigMalformed, ShardMissing), match="stands in it"):
        open_checkpoint(tmp_path)


def test_an_index_of_more_shards_than_any_model_has_is_refused_before_one_is_opened(tmp_path: Path) -> None:
    names = [f"model-{n:05d}-of-04097.safetensors" for n in range(1, 4_098)]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with pytest.raises(ShardMissing, match=r"names 4,097 shards; at most 4,096 are read"):
        open_checkpoint(tmp_path)
