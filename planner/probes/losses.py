"""Losses by their derivatives with respect to the logits, at any logit temperature, with real or sampled labels.

With z the logits of a position and b the inverse temperature, the loss of a token y is  logsumexp(b z) - b z_y, its
derivative by z is  b (softmax(b z) - e_y), and by log b it is  b (E z - z_y). A document adds these up. A question adds
them up with a coefficient for each choice: its loss is -log q(answer), q = softmax over the choices of their
log-likelihoods. Labels drawn from the model itself give scores, whose second moments are the Fisher information
(Martens 2020, "New insights and perspectives on the natural gradient method", section 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.probes.tasks import Sequences

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Outcome", "batches_of", "derivative", "log_likelihoods"]

_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, eq=False)
class Batch:
    """Items that run through the model together, padded on the right."""

    items: tuple[Sequences, ...]
    inputs: Tensor
    """[sequences, positions]."""
    mask: Tensor
    """[sequences, positions]: 1 where there is a token."""
    targets: Tensor
    """[scored tokens]: the next token."""
    where: Tensor
    """[scored tokens]: their places in the flattened [sequences · positions]."""
    owners: Tensor
    """[scored tokens]: the sequence of each."""
    begins: tuple[int, ...]
    """The first sequence of each item."""
    places: tuple[int, ...]
    """The place of each item among those that the batches were made of."""
    counts: tuple[int, ...]
    """How many labels each item has: its scored tokens, or one for a question."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One loss of one batch."""

    loss: float
    """Nats, summed over the items."""
    by_log_inverse_temperature: float
    """Its derivative by log b."""
    by_logits: Tensor
    """Its derivative by the logits, [sequences · positions, vocabulary], zero where nothing is scored."""


def batches_of(items: Sequence[Sequences], budget: int, device: Any) -> Iterator[Batch]:
    """Items in batches of at most `budget` tokens with padding; an item is never cut, even where it is larger."""
    held: list[int] = []
    count = longest = 0
    for place in sorted(range(len(items)), key=lambda place: -max(map(len, items[place].ids))):
        ids = items[place].ids
        if held and longest * (count + len(ids)) > budget:
            yield _batch(items, held, device)
            held, count = [], 0
        if not held:
            longest = max(map(len, ids))  # the longest come first
        held.append(place)
        count += len(ids)
    if held:
        yield _batch(items, held, device)


def _batch(every: Sequence[Sequences], chosen: Sequence[int], device: Any) -> Batch:
    import torch

    items = [every[place] for place in chosen]
    sequences = [ids for item in items for ids in item.ids]
    starts = [start for item in items for start in item.scored_from]
    longest = max(map(len, sequences)) - 1
    inputs = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(inputs)
    targets, where, owners = [], [], []
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        mask[row, : len(ids) - 1] = 1
        for position in range(start - 1, len(ids) - 1):
            targets.append(ids[position + 1])
            where.append(row * longest + position)
            owners.append(row)
    begins, begin = [], 0
    for item in items:
        begins.append(begin)
        begin += len(item.ids)
    indices = [torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (targets, where, owners)]
    return Batch(
        items=tuple(items),
        inputs=inputs.to(device),
        mask=mask.to(device),
        targets=indices[0],
        where=indices[1],
        owners=indices[2],
        begins=tuple(begins),
        places=tuple(chosen),
        counts=tuple(len(item.ids[0]) - item.scored_from[0] if item.answer is None else 1 for item in items),
    )


def log_likelihoods(logits: Tensor, batch: Batch, inverse_temperatures: Sequence[float]) -> Tensor:
    """[temperatures, sequences]: log p of the scored tokens of each sequence, float64, nats.

    `logits` is [sequences · positions, vocabulary].
    """
    import torch

    found = torch.zeros(len(inverse_temperatures), len(batch.inputs), dtype=torch.float64)
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    for begin in range(0, len(batch.where), step):
        here = slice(begin, begin + step)
        rows = _wide(logits[batch.where[here]])
        rows = rows - rows.amax(dim=-1, keepdim=True)
        chosen = rows.gather(1, batch.targets[here].unsqueeze(1)).squeeze(1)
        for place, b in enumerate(inverse_temperatures):
            terms = b * chosen - (b * rows).logsumexp(dim=-1)
            found[place].index_add_(0, batch.owners[here].cpu(), terms.cpu().double())
    return found


def derivative(logits: Tensor, batch: Batch, inverse_temperature: float, draws: Tensor | None = None) -> Outcome:
    """The loss of a batch and its derivatives. With `draws` the labels are drawn from the model, else real.

    `logits` is [sequences · positions, vocabulary]; 16-bit ones are computed with in float32. `draws` are uniform
    random numbers above 0 and up to 1, on the CPU, one for each label of each item. Of a question only the answer is
    drawn.
    """
    import torch

    b = inverse_temperature
    questions = batch.items[0].answer is not None
    gradient = torch.zeros_like(logits)
    # The coefficients of a question's choices depend on all of their tokens, so they come first.
    coefficients = None
    loss = 0.0
    if questions:
        coefficients, loss = _of_choices(log_likelihoods(logits, batch, [b])[0], batch, draws)
        coefficients = coefficients.to(_wide(logits[:0]).dtype).to(logits.device)
    by_b = 0.0
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    for begin in range(0, len(batch.where), step):
        here = slice(begin, begin + step)
        where, targets = batch.where[here], batch.targets[here]
        rows = _wide(logits[where]) * b
        rows = rows - rows.amax(dim=-1, keepdim=True)
        probabilities = rows.exp()
        total = probabilities.sum(dim=-1, keepdim=True)
        probabilities /= total
        if draws is not None and not questions:
            targets = _drawn(probabilities, draws[here])
        chosen = rows.gather(1, targets.unsqueeze(1))
        weights = 1.0 if coefficients is None else coefficients[batch.owners[here]].unsqueeze(1)
        if coefficients is None:
            loss += _summed(total.log() - chosen)
        expected = (probabilities * rows).sum(dim=-1, keepdim=True)
        by_b += _summed((expected - chosen) * weights)
        probabilities.scatter_add_(1, targets.unsqueeze(1), torch.full_like(chosen, -1.0))
        gradient[where] = (probabilities * (weights * b)).to(gradient.dtype)
    return Outcome(loss, by_b, gradient)


def _wide(values: Tensor) -> Tensor:
    """In float32, or in float64 where it is that already."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32))


def _summed(values: Tensor) -> float:
    """In float64, which not every device has."""
    return float(values.cpu().double().sum())


def _drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """A token a row, by inverting the cumulative distribution: the same draws on every device.

    A draw is above 0, so that no token without probability is drawn.
    """
    import torch

    cumulative = probabilities.cumsum(dim=-1)
    levels = draws.to(probabilities).unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, levels).squeeze(1).clamp_(max=probabilities.shape[-1] - 1)


def _of_choices(scores: Tensor, batch: Batch, draws: Tensor | None) -> tuple[Tensor, float]:
    """The coefficient of each sequence and the loss: d(-log q_answer) = Σ (answer? - q) · d(-log p(sequence))."""
    import torch

    coefficients = torch.zeros(len(batch.inputs), dtype=torch.float64)
    loss = 0.0
    for place, (item, begin) in enumerate(zip(batch.items, batch.begins, strict=True)):
        here = slice(begin, begin + len(item.ids))
        log_q = scores[here].log_softmax(dim=0)
        answer = item.answer
        assert answer is not None, "the items of a batch are of one kind"
        if draws is not None:
            answer = int(_drawn(log_q.exp().unsqueeze(0), draws[place : place + 1]))
        loss -= float(log_q[answer])
        coefficients[here] = -log_q.exp()
        coefficients[begin + answer] += 1.0
    return coefficients, loss
