"""Where a steering vector goes: into the bias of a linear module, which may have to be made."""

from __future__ import annotations

from dataclasses import dataclass

from planner.architecture import Parameter
from planner.dtypes import float_dtype
from planner.edits.surroundings import Surroundings
from planner.edits.types import Added, Unresolved
from planner.operations import BakeSteering

__all__ = ["Place", "steering_place"]


@dataclass(frozen=True)
class Place:
    """Which tensor gets the vector."""

    tensor: str
    added: tuple[Added, ...] = ()
    config: tuple[tuple[str, bool], ...] = ()
    axis: str | None = None
    """For the weight itself, where there is no bias: which index runs over the outputs."""


def steering_place(operation: BakeSteering, weight: str, around: Surroundings) -> Place:
    """The bias of the module whose weight is named, or the weight where it can have none and `rank_one` is asked for.

    Raises `Unresolved`.
    """
    parameter = around.model.parameters.get(weight)
    if parameter is None or parameter.bias is None:
        raise Unresolved(
            f"{weight} is not known to be the weight of a linear module",
            hint=around.model.reason or "name the weight of a projection, such as a down_proj",
        )
    if parameter.bias in around.checkpoint.tensors:
        return Place(parameter.bias)
    if parameter.bias_flag is not None and operation.without_bias == "refuse":
        return _made(parameter, parameter.bias_flag, around)
    if operation.without_bias == "rank_one":
        return Place(weight, axis="columns" if parameter.transposed else "rows")
    raise Unresolved(
        f"a {around.model.family} model has no {parameter.bias}, and no key of config.json gives it one: loaders would "
        "drop it without a word",
        hint='ask for the approximation with "without_bias": "rank_one" and the module\'s mean input',
        code="no-bias",
    )


def _made(parameter: Parameter, flag: str, around: Surroundings) -> Place:
    """The bias, and every other one that the same key of config.json gives to the model."""
    added = []
    for other in around.model.parameters.values():
        if other.bias_flag == flag and other.bias and other.bias not in around.checkpoint.tensors:
            stored = around.checkpoint.tensors[other.name]
            if float_dtype(stored.dtype) is None:
                raise Unresolved(
                    f"{flag} would give {other.bias} to {other.name}, which is {stored.dtype}: no dtype for a bias",
                    hint="steer a checkpoint that is not quantised",
                    code="unsupported-dtype",
                )
            outputs = stored.shape[1] if other.transposed else stored.shape[0]
            added.append(Added(other.bias, stored.dtype, (outputs,), other.name))
    assert parameter.bias is not None, "the caller looked"
    return Place(parameter.bias, tuple(added), ((flag, True),))
