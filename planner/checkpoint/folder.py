"""A checkpoint: a folder with config.json and one or more safetensors shards."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import strict_json
from planner.checkpoint.header import Header, read_header
from planner.errors import (
    ConfigMalformed,
    FileUnreadable,
    NotACheckpoint,
    PickleOnly,
    ShardMissing,
    ShardsAmbiguous,
    ShardTruncated,
)

__all__ = ["INDEX", "SINGLE", "Checkpoint", "Shard", "Tensor", "open_checkpoint"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NUMBERED = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_CHUNK = 8 * 2**20
_LARGEST_JSON = 64 * 2**20


@dataclass(frozen=True)
class Tensor:
    """A named array and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    """File name inside the checkpoint folder."""
    begin: int
    """Offset of its first byte from the beginning of the shard."""
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint."""

    name: str
    header: Header


@dataclass(frozen=True)
class Checkpoint:
    """A read-only view of a checkpoint: headers and configuration are read, weights are not."""

    path: Path
    config: dict[str, Any]
    """config.json; empty where there is none."""
    config_bytes: bytes
    shards: tuple[Shard, ...]
    tensors: dict[str, Tensor]
    """By name, in the order of shards and of the data in them."""

    @property
    def name(self) -> str:
        """What people call it: its folder's name, or the hub id its snapshot folder belongs to."""
        if self.path.parent.name == "snapshots" and self.path.parent.parent.name.startswith("models--"):
            return self.path.parent.parent.name.removeprefix("models--").replace("--", "/")
        return os.fsencode(self.path.name).decode(errors="replace")  # a folder's name need not be text

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def header(self, shard: str) -> Header:
        """The header of the shard in the file called `shard`."""
        return next(found.header for found in self.shards if found.name == shard)

    def header_bytes(self, shard: str) -> bytes:
        """That header as it lies in the file, its length and padding included."""
        with (self.path / shard).open("rb") as file:
            return file.read(self.header(shard).data_begin)

    def chunks(self, tensor: Tensor, *, size: int = _CHUNK) -> Iterator[bytes]:
        """The tensor's bytes, in order, at most `size` at a time (a multiple of 16, so elements are never cut).

        Raises `ShardTruncated` if the file became shorter, `FileUnreadable` if it went away.
        """
        path = self.path / tensor.shard
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileUnreadable(f"{path}: {error.strerror}", hint="is the checkpoint being changed?") from None
        try:
            done = 0
            while done < tensor.nbytes:
                wanted = min(size, tensor.nbytes - done)
                yield _read_at(path, descriptor, wanted, tensor.begin + done)
                done += wanted
        finally:
            os.close(descriptor)


def _read_at(path: Path, descriptor: int, wanted: int, place: int) -> bytes:
    chunk = b""
    while len(chunk) < wanted:
        try:
            more = os.pread(descriptor, wanted - len(chunk), place + len(chunk))
        except OSError as error:
            raise FileUnreadable(f"{path}: {error.strerror}", hint="check the disk") from None
        if not more:
            raise ShardTruncated(f"{path} became shorter while it was read", hint="is it being changed?")
        chunk = chunk + more if chunk else more
    return chunk


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of the checkpoint in the folder `path`.

    Raises a `CheckpointError`: `NotACheckpoint`, `PickleOnly`, `HeaderMalformed`, `ShardTruncated`, `ShardMissing`,
    `ShardsAmbiguous`, `UnknownDtype` or `ConfigMalformed`; or `FileUnreadable`.
    """
    try:
        if not path.exists():
            raise NotACheckpoint(f"{path} does not exist", hint=_WHAT_IS_ONE)
        if not path.is_dir():
            raise NotACheckpoint(f"{path} is not a folder", hint=_WHAT_IS_ONE)
        found = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check its permissions") from None
    config, config_bytes = _config(path)
    names, index = _shard_names(path, found)
    shards = tuple(Shard(name, read_header(_regular(path / name))) for name in names)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in tensors:
                raise ShardsAmbiguous(
                    f"the tensor {entry.name!r} is in both {tensors[entry.name].shard} and {shard.name}",
                    hint="remove the stale shard",
                )
            tensors[entry.name] = Tensor(entry.name, entry.dtype, entry.shape, shard.name, entry.begin, entry.nbytes)
    if index is not None:
        _agree(path, index, tensors)
    return Checkpoint(path=path, config=config, config_bytes=config_bytes, shards=shards, tensors=tensors)


_WHAT_IS_ONE = "name a folder that holds config.json and *.safetensors, or a model id that is in the hub cache"


def _config(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        raw = _read_small(path / "config.json")
    except FileNotFoundError:
        return {}, b""
    except OSError as error:
        raise FileUnreadable(f"{path / 'config.json'}: {error.strerror}", hint="check its permissions") from None
    try:
        config = strict_json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, strict_json.JsonRefused) as error:
        raise ConfigMalformed(f"{path / 'config.json'}: {error}", hint="repair or fetch config.json again") from None
    if not isinstance(config, dict):
        raise ConfigMalformed(f"{path / 'config.json'} is not a JSON object", hint="fetch config.json again")
    return config, raw


def _read_small(path: Path) -> bytes:
    """The bytes of a JSON file. Raises OSError where it is no regular file, or larger than any that is read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a FIFO would make the reader wait for ever
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if found.st_size > _LARGEST_JSON:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes; at most {_LARGEST_JSON:,} are read", str(path))
    return path.read_bytes()


def _shard_names(path: Path, found: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """The shard files to read, and the index's map from tensor to shard if there is one."""
    present = [name for name in found if name.endswith(".safetensors")]
    if (path / INDEX).exists():
        index = _index(path / INDEX)
        listed = sorted(set(index.values()))
        for name in listed:
            if name not in present:
                raise ShardMissing(f"{path / INDEX} names {name!r}, which is not there", hint="fetch the shard again")
        stale = [name for name in present if name not in listed and (name == SINGLE or _NUMBERED.fullmatch(name))]
        if stale:
            raise ShardsAmbiguous(
                f"{path} holds {', '.join(stale)} beside an index that does not name it: two loaders would read "
                "different weights",
                hint="remove the stale files",
            )
        return listed, index
    if SINGLE in present:
        return [SINGLE], None
    # One shard of several is a part of a model, which would pass for the whole.
    if len(present) == 1 and not ((part := _NUMBERED.fullmatch(present[0])) and int(part[1]) > 1):
        return present, None
    if present:
        raise ShardMissing(f"{path} holds {', '.join(present[:3])} but no {INDEX}", hint="fetch the index as well")
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if pickles:
        raise PickleOnly(
            f"{path} holds its weights as pickle ({pickles[0]}), which can run any code when opened",
            hint="load it on a machine you can lose, and call save_pretrained(DIR, safe_serialization=True)",
        )
    raise NotACheckpoint(f"{path} holds no safetensors file", hint=_WHAT_IS_ONE)


def _index(path: Path) -> dict[str, str]:
    try:
        index = strict_json.loads(_read_small(path).decode("utf-8"))
    except OSError as error:
        raise ShardMissing(f"{path}: {error.strerror}", hint="fetch the index again") from None
    except (UnicodeDecodeError, strict_json.JsonRefused) as error:
        raise ShardMissing(f"{path}: {error}", hint="fetch the index again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShardMissing(f"{path} has no weight_map", hint="fetch the index again")
    for name in weight_map.values():
        # The index is a stranger's text: a shard name must be a plain name inside this folder.
        if not isinstance(name, str) or name != Path(name).name or name in {"", ".", ".."} or "\0" in name:
            raise ShardMissing(f"{path} names the shard {name!r}, which is no file name", hint="do not use this model")
    return weight_map


def _agree(path: Path, index: dict[str, str], tensors: dict[str, Tensor]) -> None:
    for name, shard in index.items():
        if name not in tensors or tensors[name].shard != shard:
            raise ShardMissing(f"{path / INDEX} says that {name!r} is in {shard}; it is not", hint=_INDEX_STALE)
    for name in tensors:
        if name not in index:
            raise ShardMissing(f"{name!r} is in {tensors[name].shard} but not in {path / INDEX}", hint=_INDEX_STALE)


_INDEX_STALE = "the index is not the one of these shards; fetch both again"


def _regular(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except OSError as error:  # in a hub cache: a link whose blob was never fetched, or was pruned
        raise ShardMissing(f"{path}: {error.strerror}", hint="fetch the shard again") from None
    if not stat.S_ISREG(mode):  # a FIFO would make the reader wait for ever
        raise NotACheckpoint(f"{path} is not a regular file", hint=_WHAT_IS_ONE)
    return path
