"""Which parameters of a loaded model are watched, and under which name of the checkpoint.

A loader may rename, join, permute or leave out what a file holds. Only what is, in the model, the very array that the
file holds can be said to have been measured; everything else is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.errors import UsageError
from planner.inference import parameters_by_tensor

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["watched_parameters"]

_COMPARED = 4096


def watched_parameters(
    model: Any, checkpoint: Checkpoint, mapped: ModelMap
) -> tuple[dict[str, Parameter], dict[str, str]]:
    """The parameters to watch by the tensor's name, in the order of the checkpoint, and why other tensors are not.

    Raises `UsageError` where no tensor is left.
    """
    skipped: dict[str, str] = {}
    watched: dict[str, Parameter] = {}
    owners: dict[int, str] = {}
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = parameters_by_tensor(model, shapes)
    for name in _embedding_first(checkpoint, mapped):
        tensor, parameter = checkpoint.tensors[name], found.get(name)
        if not tensor.elements:
            skipped[name] = "it is empty"
        elif float_dtype(tensor.dtype) is None:
            skipped[name] = f"it holds {tensor.dtype}, no numbers to differentiate by"
        elif parameter is None or not parameter.is_floating_point():
            skipped[name] = "the loaded model has no parameter of its name and shape"
        elif id(parameter) in owners:
            skipped[name] = f"the loaded model shares it with {owners[id(parameter)]}"
        elif not _same_values(checkpoint, name, parameter):
            skipped[name] = "the loaded model holds its numbers in another order"
        else:
            owners[id(parameter)] = name
            watched[name] = parameter
    if not watched:
        raise UsageError(
            f"no tensor of {checkpoint.name} is a parameter of the model that transformers makes of it",
            hint="only checkpoints in the names of transformers can be probed",
        )
    order = list(checkpoint.tensors)
    return {name: watched[name] for name in order if name in watched}, {n: skipped[n] for n in order if n in skipped}


def _embedding_first(checkpoint: Checkpoint, mapped: ModelMap) -> Iterator[str]:
    """Of two stored copies the embedding is the one that every loader reads, wherever the file has it."""
    if mapped.embedding in checkpoint.tensors and mapped.embedding is not None:
        yield mapped.embedding
    yield from (name for name in checkpoint.tensors if name != mapped.embedding)


def _same_values(checkpoint: Checkpoint, name: str, parameter: Parameter) -> bool:
    """Whether the beginning of the tensor is what was loaded: a loader may permute what a file holds."""
    import torch

    tensor = checkpoint.tensors[name]
    dtype = float_dtype(tensor.dtype)
    assert dtype is not None, "the caller leaves out everything else"
    first = next(iter(checkpoint.chunks(tensor)))
    values = dtype.decode(dtype.patterns(first))[:_COMPARED]
    loaded = parameter.detach().reshape(-1)[: len(values)].cpu()
    stored = torch.from_numpy(np.array(values)).to(loaded.dtype)  # a copy: the chunk cannot be written to
    return bool(torch.equal(stored.nan_to_num(), loaded.nan_to_num()))
