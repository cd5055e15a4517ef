"""A loaded model with other weights for a while: tensors of the checkpoint by name, as parameters of the model.

Loaders may rename, split or join what a file holds. A tensor counts as a parameter only where names and shapes agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

__all__ = ["overlaid", "parameters_by_tensor"]


def parameters_by_tensor(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Parameter]:
    """The parameter that each stored tensor was loaded into; those that have none of their name and shape are left out.

    Checkpoints of the bare model store names without the prefix of the language model around it (`h.0...` for
    `transformer.h.0...`), and some store it with one that the class has not. Stored copies of a tied tensor lead to
    one and the same parameter.
    """
    import torch

    prefix = getattr(model, "base_model_prefix", "")
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for name, shape in shapes.items():
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            parameter = named.get(candidate)
            if isinstance(parameter, torch.nn.Parameter) and tuple(parameter.shape) == tuple(shape):
                found[name] = parameter
                break
    return found


@contextmanager
def overlaid(changes: Mapping[str, NDArray[np.generic]], parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """The model with `changes` (by the tensor's name, each of its shape) in place of its weights; as before afterwards.

    Raises KeyError for a tensor that is no parameter of the model.
    """
    import torch

    kept: list[tuple[Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for name, values in changes.items():
                parameter = parameters[name]
                kept.append((parameter, parameter.detach().clone()))
                fresh = torch.from_numpy(np.ascontiguousarray(values))
                parameter.copy_(fresh.reshape(parameter.shape).to(parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for parameter, values_before in reversed(kept):
                parameter.copy_(values_before)
