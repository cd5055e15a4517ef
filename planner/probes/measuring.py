"""One forward pass a group of documents, and from its logits one backward pass for each loss that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import CheckpointError
from planner.evidence import Layout
from planner.evidence.measured import Floats, SetName
from planner.probes.losses import Batch, batches_of, derivative, log_likelihoods
from planner.probes.reduction import Reduction, mixed_seed
from planner.probes.tasks import Group

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

__all__ = ["Machine", "Rows", "best_temperature", "logits_of", "loss_at"]

# Logits of a batch, 512 MiB in float32; a batch has at most _BATCH_TOKENS tokens as well, for the activations.
_LOGITS_ELEMENTS = 2**27
_BATCH_TOKENS = 4096
_COARSE = tuple(2.0 ** (power / 2) for power in range(-10, 11))
_FINE = 9
_STEP = 0.06
_PILOT_GROUPS = 16

Step = Callable[[int], None]


@dataclass(eq=False)
class Machine:
    """A loaded model whose parameters are watched."""

    model: Any
    parameters: Mapping[str, Parameter]
    layout: Layout
    seed: int
    device: Any
    batch_tokens: int = _BATCH_TOKENS
    reduction: Reduction = field(init=False)

    def __post_init__(self) -> None:
        """Let gradients flow to the watched parameters only, and into the hooks."""
        watched = {id(parameter) for parameter in self.parameters.values()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in watched)
        # torch keeps gradients from the row of the padding token, which may stand in a text as another token does.
        # Padding itself comes last and is attended to by nothing, so it adds none.
        self.model.get_input_embeddings().padding_idx = None
        self.reduction = Reduction(self.parameters, self.layout, seed=self.seed)

    @property
    def budget(self) -> int:
        """Tokens of a batch, padding included."""
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        return max(1, min(self.batch_tokens, _LOGITS_ELEMENTS // vocabulary))

    def batches(self, group: Group) -> list[Batch]:
        """The batches of one group."""
        return list(batches_of(group.items, self.budget, self.device))

    def measure(self, group: Group, losses: Mapping[SetName, float], *, number: int, half: int, factor: float) -> Rows:
        """Every loss of one group by every scale and shift; `losses` gives the inverse temperature of each.

        The gradient of the calibrated loss, times `factor`, goes into the sketch of that `half` of the documents.
        Labels of the sets called `fisher...` are drawn, always the same for the same seed, set, `number` of the group
        and place of the document in it, whatever the batches. Raises `CheckpointError` where a loss or a derivative is
        not finite.
        """
        import torch

        rows = Rows.empty(losses, self.layout)
        for batch in self.batches(group):
            logits = logits_of(self.model, batch)
            for last, (name, inverse_temperature) in _and_last(losses.items()):
                draws = self._draws(batch, name, number) if name.startswith("fisher") else None
                outcome = derivative(logits.detach(), batch, inverse_temperature, draws)
                self.reduction.sketch(half if name == "calibrated" else None, factor)
                torch.autograd.backward([logits], [outcome.by_logits], retain_graph=not last)
                units, shifts = self.reduction.take()
                # An infinite weight gradient shows in the sums; of the sketches, which are sums of the same, too.
                if not (np.isfinite(outcome.loss) and np.isfinite(units).all() and np.isfinite(shifts).all()):
                    raise _not_finite()
                rows.add(name, outcome.loss, outcome.by_log_inverse_temperature, units, shifts)
        return rows

    def _draws(self, batch: Batch, name: str, number: int) -> Tensor:
        """[labels]: uniform above 0 and up to 1, for each item from a generator of its own."""
        import torch

        drawn = []
        for place, count in zip(batch.places, batch.counts, strict=True):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, name, number, place))
            drawn.append(1.0 - torch.rand(count, generator=generator))
        return torch.cat(drawn)


@dataclass(eq=False)
class Rows:
    """What one group adds to each set."""

    losses: dict[SetName, float]
    temperature: dict[SetName, float]
    units: dict[SetName, NDArray[np.float64]]
    shifts: dict[SetName, NDArray[np.float64]]
    layout: Layout

    @classmethod
    def empty(cls, names: Mapping[SetName, float], layout: Layout) -> Rows:
        """All zeros."""
        return cls(
            dict.fromkeys(names, 0.0),
            dict.fromkeys(names, 0.0),
            {name: np.zeros(layout.units) for name in names},
            {name: np.zeros(layout.tensors) for name in names},
            layout,
        )

    def add(self, name: SetName, loss: float, temperature: float, units: Floats, shifts: Floats) -> None:
        """What one batch gave."""
        self.losses[name] += loss
        self.temperature[name] += temperature
        self.units[name] += units
        self.shifts[name] += shifts

    def tensors(self, name: SetName) -> Floats:
        """[2 · tensors + 1]: by scale and shift of each tensor, and by log inverse temperature."""
        units = self.units[name]
        scales = np.array([units[place.rows].sum() for place in self.layout.places.values()])
        return np.concatenate([scales, self.shifts[name], [self.temperature[name]]])


def logits_of(model: Any, batch: Batch) -> Tensor:
    """[sequences · positions, vocabulary], with the graph behind them where gradients are on."""
    # Without padding there is nothing to mask, and attention has a faster path.
    needed = None if bool(batch.mask.all()) else batch.mask
    logits: Tensor = model(input_ids=batch.inputs, attention_mask=needed, use_cache=False).logits
    return logits.flatten(0, 1)


def loss_at(machine: Machine, groups: Sequence[Group], inverse_temperatures: Sequence[float], step: Step) -> Floats:
    """[temperatures]: the loss of groups of one side, nats per token or question, without gradients."""
    import torch

    total = np.zeros(len(inverse_temperatures))
    with torch.no_grad():
        for group in groups:
            for batch in machine.batches(group):
                found = log_likelihoods(logits_of(machine.model, batch), batch, inverse_temperatures)
                for item, begin in zip(batch.items, batch.begins, strict=True):
                    mine = found[:, begin : begin + len(item.ids)]
                    if item.answer is None:
                        total -= mine[:, 0].numpy()
                    else:
                        total -= mine.log_softmax(dim=1)[:, item.answer].numpy()
            step(group.tokens)
    return total / sum(group.weight for group in groups)


def best_temperature(machine: Machine, groups: Sequence[Group], step: Step) -> float:
    """The inverse temperature at which the loss of the groups is lowest, mostly from two passes forward.

    First a coarse grid on some groups, then a fine one around its best on all, which moves on as long as its end is the
    lowest; the vertex of the parabola through the lowest point and its neighbours. Where the loss falls to the end of
    the coarse grid (32 times hotter or colder), the end is taken.
    """
    stride = max(1, len(groups) // _PILOT_GROUPS)
    coarse = loss_at(machine, groups[::stride][:_PILOT_GROUPS], _COARSE, lambda _: None)
    if not np.isfinite(coarse).all():
        raise _not_finite()
    around = _STEP * (np.arange(_FINE) - _FINE // 2)
    first, last = np.log(_COARSE[0]) - around[0], np.log(_COARSE[-1]) - around[-1]
    centre = _vertex(np.log(np.array(_COARSE)), coarse)
    while True:
        centre = float(np.clip(centre, first, last))
        losses = loss_at(machine, groups, tuple(np.exp(centre + around)), step)
        if not np.isfinite(losses).all():
            raise _not_finite()
        place = int(np.argmin(losses))
        if place not in (0, _FINE - 1) or centre == (first if place == 0 else last):
            return float(np.exp(_vertex(np.asarray(centre + around), losses)))
        # What it leaves behind was no lower, so it cannot turn back.
        centre, step = float(centre + around[place]), _unheard


def _unheard(_tokens: int) -> None:
    """In the place of a progress bar that is full already."""


def _not_finite() -> CheckpointError:
    return CheckpointError(
        "the loss or its derivatives are not finite on some documents",
        hint="there is nothing to differentiate; check the weights, or try --dtype float32",
    )


def _vertex(points: Floats, values: Floats) -> float:
    place = int(np.argmin(values))
    if place in (0, len(points) - 1):
        return float(points[place])
    left, middle, right = values[place - 1 : place + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(points[place] + shift * (points[1] - points[0]))


def _and_last(items: Any) -> Any:
    listed = list(items)
    return ((place == len(listed) - 1, item) for place, item in enumerate(listed))
