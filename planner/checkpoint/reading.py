"""Reading the bytes of tensors into memory that is used again and again."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType

from planner.checkpoint.folder import Checkpoint, Tensor
from planner.errors import FileUnreadable, ShardTruncated

__all__ = ["TensorReader"]

_AHEAD = 16 * 2**20
_WORTH_ADVICE = 2**20  # smaller reads follow one another so closely that the kernel reads ahead by itself


class TensorReader:
    """Reads pieces of tensors; keeps the shard last read open. For one thread.

    Every read tells the kernel which bytes follow, so that the disk works while the caller does.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._shard: str | None = None
        self._descriptor = -1

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the open shard, if there is one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._shard, self._descriptor = None, -1

    def read_into(self, buffer: memoryview, tensor: Tensor, offset: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on.

        Raises `ShardTruncated` if the file became shorter, `FileUnreadable` if it went away or the disk fails.
        """
        path = self._checkpoint.path / tensor.shard
        try:
            self._open(tensor.shard)
            place, done = tensor.begin + offset, 0
            with suppress(OSError, AttributeError):  # advice: some file systems take none, some systems give none
                os.posix_fadvise(self._descriptor, place + len(buffer), _AHEAD, os.POSIX_FADV_WILLNEED)
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done:]], place + done)
                if not count:
                    raise ShardTruncated(f"{path} became shorter while it was read", hint="is it being changed?")
                done += count
        except OSError as error:
            raise FileUnreadable(f"{path}: {error.strerror}", hint="check the disk, and who else writes") from None

    def _open(self, shard: str) -> None:
        if shard != self._shard:
            self.close()
            self._descriptor = self._checkpoint.open_shard(shard)
            self._shard = shard
