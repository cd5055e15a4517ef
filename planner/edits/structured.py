"""Heads, neurons and channels: which rows and columns of which tensors they are, by the map of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.architecture import ModelMap, Parameter, role_of
from planner.architecture.decoder import LatentAttention
from planner.edits.selecting import band_selection, indices_within
from planner.edits.types import Unresolved
from planner.operations import ChannelScale, Columns, HeadScale, NeuronScale, Rows, Selection

__all__ = ["Structured", "structured_selections"]

Structured = HeadScale | NeuronScale | ChannelScale
_MOST_ROLES = 4


def structured_selections(
    operation: Structured, names: Sequence[str], explicit: bool, model: ModelMap
) -> dict[str, Selection]:
    """The tensors that the operation means, with their rows or columns.

    `names` are the tensors that the target matches; `explicit` says that it names tensors or roles and not layers
    alone, so that nothing beyond them is meant. Raises `Unresolved`.
    """
    if not model.known:
        raise Unresolved(
            f"{operation.kind} needs the map of the model, which is not known: {model.reason}",
            hint="use `scale` on rows or columns, which needs no map",
        )
    wanted = set(names)
    layers = {p.layer for name in names if (p := model.parameters.get(name))}
    found: dict[str, Selection] = {}
    for layer in sorted(layers, key=lambda number: -1 if number is None else number):
        whole = list(model.in_layer(layer))
        inside = [p for p in whole if not explicit or p.name in wanted]
        if isinstance(operation, HeadScale):
            _require_own_keys(operation, model, layer)
            here = _heads(operation, inside, whole, layer)
        elif isinstance(operation, NeuronScale):
            here = _neurons(operation, inside, whole, layer)
        else:
            here = _channels(operation, inside, model)
        if not here and layer is not None:
            raise _nothing(operation, f" in layer {layer}", whole)
        found |= here
    if not found:
        raise _nothing(operation, "", ())
    return found


def _nothing(operation: Structured, where: str, whole: Iterable[Parameter]) -> Unresolved:
    """Nothing of the target fits; `whole` is all of the layer, where it is one layer's tensors that do not."""
    fitting = list(dict.fromkeys(role_of(p.name).role for p in whole if _holds(p, operation)))
    instead = (
        f"leave `roles` and `tensors` out and name layers alone, or name {' and '.join(fitting[:_MOST_ROLES])}"
        if fitting
        else 'name layers alone, such as {"layers": "3"}, and the tensors are found by themselves'
    )
    return Unresolved(
        f"no tensor of the target{where} holds what {operation.kind} ({operation.part}) acts on", hint=instead
    )


def _holds(parameter: Parameter, operation: Structured) -> bool:
    """Whether the operation acts on some of this tensor."""
    if isinstance(operation, ChannelScale):
        return (parameter.writes if operation.part == "writers" else parameter.reads) is not None
    unit = "head" if isinstance(operation, HeadScale) else "neuron"
    return any(band.unit == unit and band.part in _parts(operation) for band in parameter.bands)


def _parts(operation: HeadScale | NeuronScale) -> tuple[str, ...]:
    return ("gate", "up") if operation.part == "gate_and_up" else (operation.part,)


def _heads(
    operation: HeadScale, inside: Iterable[Parameter], whole: Iterable[Parameter], layer: int | None
) -> dict[str, Selection]:
    # Heads are counted as query heads, whichever tensors the target names.
    query = next((len(b.indices) for p in whole for b in p.bands if b.part in ("query", "output")), None)
    found: dict[str, Selection] = {}
    for parameter in inside:
        for band in parameter.bands:
            if band.unit == "head" and band.part == operation.part:
                count = query or len(band.indices)
                wanted = indices_within(operation.heads, count, f"query heads of layer {layer}")
                units = _shared(wanted, count // len(band.indices), operation.part, layer)
                found[parameter.name] = band_selection(band, units)
    return found


def _require_own_keys(operation: HeadScale, model: ModelMap, layer: int | None) -> None:
    """Raises `Unresolved` for the keys of a latent attention, whose rotated channels all heads share."""
    latent = layer is not None and model.decoder and isinstance(model.decoder.layer(layer).attention, LatentAttention)
    if operation.part == "key" and latent:
        raise Unresolved(
            f"all heads of layer {layer} share one part of their keys, the rotated one, so that no head's keys can be "
            "scaled",
            hint='scale the queries, which changes the same scores: part "query"',
        )


def _shared(heads: NDArray[np.int64], group: int, part: str, layer: int | None) -> NDArray[np.int64]:
    """The key/value heads of query heads, of which `group` share one. Raises `Unresolved` for a part of a group."""
    if group <= 1:
        return heads
    units = np.unique(heads // group)
    lacking = np.setdiff1d((units[:, None] * group + np.arange(group)).reshape(-1), heads)
    if lacking.size:
        unit = int(lacking[0]) // group
        together = f"{unit * group}-{(unit + 1) * group - 1}"
        raise Unresolved(
            f"query heads {together} of layer {layer} share one {part} head, and not all of them are named",
            hint=f"name {together} together, or scale their output: part output",
        )
    return units


def _neurons(
    operation: NeuronScale, inside: Iterable[Parameter], whole: Iterable[Parameter], layer: int | None
) -> dict[str, Selection]:
    meant = [(p, b) for p in inside for b in p.bands if b.unit == "neuron" and b.part in _parts(operation)]
    experts = {p.expert for p, _ in meant if p.expert is not None}
    if len(experts) > 1 or (experts and any(p.expert is None for p, _ in meant)):
        raise Unresolved(
            f"layer {layer} has {len(experts)} experts, each with neurons of its own",
            hint="name the tensors of one expert in the target",
        )
    if operation.part == "gate_and_up" and meant and not any(b.part == "gate" for p in whole for b in p.bands):
        raise Unresolved(f"the MLP of layer {layer} has no gate", hint='use part "up"')
    found: dict[str, Selection] = {}
    for parameter, band in meant:
        units = indices_within(operation.neurons, len(band.indices), f"neurons of layer {layer}")
        selection = band_selection(band, units)
        if parameter.name in found:  # gate and up in one tensor
            selection = _both(found[parameter.name], selection)
        found[parameter.name] = selection
    return found


def _both(first: Selection, second: Selection) -> Selection:
    if isinstance(first, Rows) and isinstance(second, Rows):
        return Rows(np.union1d(first.indices, second.indices))
    assert isinstance(first, Columns), "two bands of one tensor lie along the same index"
    assert isinstance(second, Columns), "two bands of one tensor lie along the same index"
    return Columns(np.union1d(first.indices, second.indices))


def _channels(operation: ChannelScale, inside: Iterable[Parameter], model: ModelMap) -> dict[str, Selection]:
    assert model.decoder is not None, "a known map has its declaration"
    channels = indices_within(operation.channels, model.decoder.width, "channels of the residual stream")
    found: dict[str, Selection] = {}
    for parameter in inside:
        axis = parameter.writes if operation.part == "writers" else parameter.reads
        if axis is not None:
            found[parameter.name] = Rows(channels) if axis == "rows" else Columns(channels)
    return found
