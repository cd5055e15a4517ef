"""A checkpoint: a folder with config.json and one or more safetensors shards."""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import strict_json
from planner.checkpoint.header import FROM_PICKLE, Header, open_regular, read_header, shown
from planner.errors import (
    CheckpointError,
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
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NUMBERED = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_CHUNK = 8 * 2**20
_LARGEST_CONFIG = 16 * 2**20
_LARGEST_INDEX = 64 * 2**20
# How often each may stand in a JSON file: an index has one comma and one colon for each tensor, a configuration fewer.
_MARKS = {"{": 100_000, "[": 100_000, ":": 1_250_000, ",": 1_250_000}
_MOST_SHARDS = 4_096
_TRIES = 5


@dataclass(frozen=True, slots=True)
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
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint."""

    name: str
    header: Header
    place: tuple[int, int] = (0, 0)
    """Device and inode of the file whose header this is."""


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
    warnings: tuple[str, ...] = ()
    """What is odd about its files and does not change what is read, one line each; names are escaped."""

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

    def open_shard(self, shard: str) -> int:
        """A descriptor to read the shard from: of the very file whose header was read.

        A checkpoint that is changed in place gets other files. Who began to read the old ones must not go on with the
        new. Raises `FileUnreadable`.
        """
        path = self.path / shard
        try:
            descriptor = open_regular(path)
        except OSError as error:
            raise FileUnreadable(f"{path}: {error.strerror}", hint="is the checkpoint being changed?") from None
        found = os.fstat(descriptor)
        known = next((one.place for one in self.shards if one.name == shard), None)
        if known != (found.st_dev, found.st_ino):
            os.close(descriptor)
            raise FileUnreadable(f"{self.path} was changed while it was read", hint="read it again")
        return descriptor

    def header_bytes(self, shard: str) -> bytes:
        """That header as it lies in the file, its length and padding included."""
        path = self.path / shard
        descriptor = self.open_shard(shard)
        try:
            return _read_at(path, descriptor, self.header(shard).data_begin, 0)
        finally:
            os.close(descriptor)

    def chunks(self, tensor: Tensor, *, size: int = _CHUNK) -> Iterator[bytes]:
        """The tensor's bytes, in order, at most `size` at a time (a multiple of 16, so elements are never cut).

        Raises `ShardTruncated` if the file became shorter, `FileUnreadable` if it went away.
        """
        path = self.path / tensor.shard
        descriptor = self.open_shard(tensor.shard)
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
        for _ in range(_TRIES):
            before = _place(path)
            try:
                found = _open(path)
            except (CheckpointError, FileUnreadable):
                if _place(path) == before:
                    raise
                continue
            if _place(path) == before:  # else it was exchanged meanwhile, and this may be half of each
                return found
        raise FileUnreadable(f"{path} is being changed again and again", hint="wait until it is not, then read it")
    except MemoryError:
        raise FileUnreadable(f"{path}: its headers do not fit in memory", hint="free some memory") from None


def _place(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where nothing is, which who opens it says better."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open(path: Path) -> Checkpoint:
    try:
        if not path.exists():
            raise NotACheckpoint(f"{path} does not exist", hint=_WHAT_IS_ONE)
        if not path.is_dir():
            raise NotACheckpoint(f"{path} is not a folder", hint=_WHAT_IS_ONE)
        found = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check its permissions") from None
    config, config_bytes = _config(path, found)
    names, index = _shard_names(path, found)
    weight_map = None if index is None else index["weight_map"]
    shards: list[Shard] = []
    tensors: dict[str, Tensor] = {}
    for shard in names:
        header = read_header(_regular(path / shard))
        shards.append(Shard(shard, header, _place(path / shard) or (0, 0)))
        for entry in header.entries:
            if entry.name in tensors:
                raise ShardsAmbiguous(
                    f"the tensor {shown(entry.name)} is in both {tensors[entry.name].shard} and {shard}",
                    hint="remove the stale shard",
                )
            if weight_map is not None and weight_map.get(entry.name) != shard:
                raise _disagrees(path, entry.name, weight_map.get(entry.name), shard)
            tensors[entry.name] = Tensor(entry.name, entry.dtype, entry.shape, shard, entry.begin, entry.nbytes)
    for name, shard in (weight_map or {}).items():
        if name not in tensors:
            raise _disagrees(path, name, shard, None)
    warnings = [f"{shard.name}: {warning}" for shard in shards for warning in shard.header.warnings]
    warnings += _unread(found, names) + _total(index, sum(tensor.nbytes for tensor in tensors.values()))
    return Checkpoint(path, config, config_bytes, tuple(shards), tensors, tuple(warnings))


_WHAT_IS_ONE = "name a folder that holds config.json and *.safetensors, or a model id that is in the hub cache"


def _config(path: Path, found: list[str]) -> tuple[dict[str, Any], bytes]:
    if "config.json" not in found:  # listed but not to be had is another matter: in a hub cache, a blob that was pruned
        return {}, b""
    try:
        raw = _read_small(path / "config.json", _LARGEST_CONFIG)
    except OSError as error:
        raise FileUnreadable(f"{path / 'config.json'}: {error.strerror}", hint="check its permissions") from None
    try:
        config = _json(raw)
    except (UnicodeDecodeError, strict_json.JsonRefused) as error:
        raise ConfigMalformed(f"{path / 'config.json'}: {error}", hint="repair or fetch config.json again") from None
    if not isinstance(config, dict):
        raise ConfigMalformed(f"{path / 'config.json'} is not a JSON object", hint="fetch config.json again")
    return config, raw


def _read_small(path: Path, largest: int) -> bytes:
    """The bytes of a JSON file. Raises OSError where it is no regular file, or larger than any that is read."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"{size:,} bytes; at most {largest:,} are read", str(path))
        return file.read(size)


def _json(raw: bytes) -> Any:
    return strict_json.loads(raw.decode("utf-8"), most=_MARKS)


def _shard_names(path: Path, found: list[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The shard files to read, and the index if there is one."""
    present = [name for name in found if name.endswith(".safetensors")]
    standard = {name for name in present if name == SINGLE or _NUMBERED.fullmatch(name)}
    if INDEX in found:
        index = _index(path / INDEX)
        listed = sorted(set(index["weight_map"].values()))
        if len(listed) > _MOST_SHARDS:
            raise ShardMissing(
                f"{path / INDEX} names {len(listed):,} shards; at most {_MOST_SHARDS:,} are read",
                hint="do not use this model",
            )
        for name in sorted(set(listed) - set(present)):
            raise ShardMissing(f"{path / INDEX} names {shown(name)}, which is not there", hint="fetch the shard again")
        _refuse_stale(path, standard - set(listed))
        return listed, index
    if SINGLE in standard:
        _refuse_stale(path, standard - {SINGLE})
        return [SINGLE], None
    # One shard of several is a part of a model, which would pass for the whole.
    if len(present) == 1 and not ((part := _NUMBERED.fullmatch(present[0])) and int(part[1]) > 1):
        if not _plain(present[0]):
            raise NotACheckpoint(f"{path} holds {shown(present[0])}, which is no printable name", hint="rename it")
        return present, None
    if present:
        some = ", ".join(map(_escaped, present[:3]))
        raise ShardMissing(f"{path} holds {some} but no {INDEX}", hint="fetch the index as well")
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if pickles:
        raise PickleOnly(
            f"{path} holds its weights as pickle ({_escaped(pickles[0])}), which can run any code when opened",
            hint=FROM_PICKLE,
        )
    raise NotACheckpoint(f"{path} holds no safetensors file", hint=_WHAT_IS_ONE)


def _refuse_stale(path: Path, names: set[str]) -> None:
    if names:
        raise ShardsAmbiguous(
            f"{path} holds {', '.join(sorted(names)[:3])} beside the files of the model: two loaders would read "
            "different weights",
            hint="remove the stale files",
        )


def _plain(name: str) -> bool:
    """Whether it is a printable name inside a folder, and nothing that leads elsewhere on any system."""
    return name == Path(name).name and name not in {"", ".", ".."} and name.isprintable() and "\\" not in name


def _escaped(name: str) -> str:
    return shown(name)[1:-1]


def _index(path: Path) -> dict[str, Any]:
    """The index, its weight_map checked as far as it can be without the shards."""
    try:
        index = _json(_read_small(path, _LARGEST_INDEX))
    except OSError as error:
        raise ShardMissing(f"{path}: {error.strerror}", hint="fetch the index again") from None
    except (UnicodeDecodeError, strict_json.JsonRefused) as error:
        raise ShardMissing(f"{path}: {error}", hint="fetch the index again") from None
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
        raise ShardMissing(f"{path} has no weight_map", hint="fetch the index again")
    # The index is a stranger's text: a shard name must be a plain name inside this folder.
    names = index["weight_map"].values()
    odd = [f"of type {type(name).__name__}" for name in names if not isinstance(name, str)]
    odd = odd or [shown(name) for name in set(names) if not _plain(name)]
    if odd:
        raise ShardMissing(f"{path} names the shard {odd[0]}, which is no file name", hint="do not use this model")
    return index


def _disagrees(path: Path, name: str, told: str | None, shard: str | None) -> ShardMissing:
    """The index says that the tensor is in the file `told`; it is in `shard`."""
    if told is None:
        return ShardMissing(f"{shown(name)} is in {shard} but not in {path / INDEX}", hint=_INDEX_STALE)
    rest = f"{shard} holds it" if shard else "it is not"
    return ShardMissing(f"{path / INDEX} says that {shown(name)} is in {told}; {rest}", hint=_INDEX_STALE)


def _unread(found: list[str], read: list[str]) -> list[str]:
    """A warning of a file that is not read here, but that some loaders take for a shard by its name."""
    others = [name for name in found if name.startswith("model") and name.endswith(".safetensors")]
    names = sorted(set(others) - set(read))
    more = f" and {len(names) - 1:,} more are" if len(names) > 1 else " is"
    return [f"{_escaped(names[0])}{more} not read here; some loaders read every model*.safetensors"] if names else []


def _total(index: dict[str, Any] | None, nbytes: int) -> list[str]:
    """A warning of a wrong sum in the index, by which no reader finds a tensor: no reason to refuse the weights."""
    metadata = (index or {}).get("metadata")
    told = metadata.get("total_size", nbytes) if isinstance(metadata, dict) else nbytes
    if isinstance(told, int | float) and told == nbytes:
        return []
    shown_total = f"{told:,}" if isinstance(told, int | float) else f"of type {type(told).__name__}"
    return [f"{INDEX}: its total_size is {shown_total}; the tensors have {nbytes:,} bytes"]


_INDEX_STALE = "the index is not the one of these shards; fetch both again"


def _regular(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:  # in a hub cache: a link whose blob is not there
        raise ShardMissing(f"{path}: {error.strerror}", hint="fetch the shard again") from None
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check its permissions") from None
    if not stat.S_ISREG(mode):
        raise NotACheckpoint(f"{path} is not a regular file", hint=_WHAT_IS_ONE)
    return path
