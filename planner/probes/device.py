"""Where a model runs, and in what."""

from __future__ import annotations

import os
from typing import Any

from planner.checkpoint import Checkpoint
from planner.errors import UsageError

__all__ = ["chosen_device", "chosen_dtype"]

_BYTES_IN_FLOAT32 = 4


def chosen_device(asked: str) -> Any:
    """CUDA, else MPS, else the CPU for `auto`. Raises `UsageError` for a device that is not there."""
    import torch

    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if asked == "auto":
        return torch.device(next(name for name, devices in count.items() if devices))
    kind, colon, number = asked.partition(":")
    place = int(number) if number.isascii() and number.isdigit() else -1 if colon else 0
    if not 0 <= place < count.get(kind, 0):
        usable = ", ".join(name for name, devices in count.items() if devices)
        raise UsageError(f"there is no device {asked!r} here", hint=f"--device auto, or one of: {usable}")
    return torch.device(asked)


def chosen_dtype(asked: str, checkpoint: Checkpoint, device: Any) -> Any:
    """What most weights are stored in for `auto`, as long as it is a 16-bit float; else float32.

    On a CPU a 16-bit model that fits into a third of the memory in float32 runs in float32: that is more exact, and on
    most processors faster.
    """
    import torch

    if asked != "auto":
        return getattr(torch, asked)
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    stored = max(sizes, key=lambda name: sizes[name], default="F32")
    narrow = {"BF16": torch.bfloat16, "F16": torch.float16}.get(stored)
    if narrow is None:
        return torch.float32
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        if narrow == torch.float16 or _BYTES_IN_FLOAT32 * sum(sizes.values()) < memory / 3:
            return torch.float32
    return narrow
