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
    from torch import Generator, Tensor

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
    held: list[Sequences] = []
    for item in sorted(items, key=lambda item: -max(map(len, item.ids))):
        longest = max(max(map(len, other.ids)) for other in (*held, item))
        count = sum(len(other.ids) for other in (*held, item))
        if held and longest * count > budget:
            yield _batch(held, device)
            held = []
        held.append(item)
    if held:
        yield _batch(held, device)


def _batch(items: Sequence[Sequences], device: Any) -> Batch:
    import torch

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
    places = [torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (targets, where, owners)]
    return Batch(tuple(items), inputs.to(device), mask.to(device), places[0], places[1], places[2], tuple(begins))


def log_likelihoods(logits: Tensor, batch: Batch, inverse_temperatures: Sequence[float]) -> Tensor:
    """[temperatures, sequences]: log p of the scored tokens of each sequence, float64, nats.

    `logits` is [sequences · positions, vocabulary].
    """
    import torch

    found = torch.zeros(len(inverse_temperatures), len(batch.inputs), dtype=torch.float64)
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    for begin in range(0, len(batch.where), step):
        here = slice(begin, begin + step)
        rows = logits[batch.where[here]].float()
        rows = rows - rows.amax(dim=-1, keepdim=True)
        chosen = rows.gather(1, batch.targets[here].unsqueeze(1)).squeeze(1)
        for place, b in enumerate(inverse_temperatures):
            terms = b * chosen - (b * rows).logsumexp(dim=-1)
            found[place].index_add_(0, batch.owners[here].cpu(), terms.double().cpu())
    return found


def derivative(logits: Tensor, batch: Batch, inverse_temperature: float, generator: Generator | None = None) -> Outcome:
    """The loss of a batch and its derivatives. With a `generator` the labels are drawn from the model, else real.

    `logits` is [sequences · positions, vocabulary] and is read in float32. Of a question only the answer is drawn.
    """
    import torch

    b = inverse_temperature
    questions = batch.items[0].answer is not None
    drawn = generator if generator is not None and not questions else None
    gradient = torch.zeros_like(logits)
    # The coefficients of a question's choices depend on all of their tokens, so they come first.
    coefficients = None
    loss = 0.0
    if questions:
        coefficients, loss = _of_choices(log_likelihoods(logits, batch, [b])[0], batch, generator)
    by_b = 0.0
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    for begin in range(0, len(batch.where), step):
        here = slice(begin, begin + step)
        where, targets = batch.where[here], batch.targets[here]
        rows = logits[where].float() * b
        rows = rows - rows.amax(dim=-1, keepdim=True)
        probabilities = rows.exp()
        total = probabilities.sum(dim=-1, keepdim=True)
        probabilities /= total
        if drawn is not None:
            targets = _drawn(probabilities, drawn)
        chosen = rows.gather(1, targets.unsqueeze(1))
        weights = 1.0 if coefficients is None else coefficients[batch.owners[here]].to(rows).unsqueeze(1)
        if coefficients is None:
            loss += float((total.log() - chosen).sum(dtype=torch.float64))
        expected = (probabilities * rows).sum(dim=-1, keepdim=True)
        by_b += float(((expected - chosen) * weights).sum(dtype=torch.float64))
        probabilities.scatter_add_(1, targets.unsqueeze(1), torch.full_like(chosen, -1.0))
        gradient[where] = (probabilities * (weights * b)).to(gradient.dtype)
    return Outcome(loss, by_b, gradient)


def _drawn(probabilities: Tensor, generator: Generator) -> Tensor:
    """A token a row, by inverting the cumulative distribution: the same draws on every device."""
    import torch

    uniform = torch.rand(len(probabilities), 1, generator=generator).to(probabilities.device)
    cumulative = probabilities.cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(1)
    return drawn.clamp_(max=probabilities.shape[-1] - 1)


def _of_choices(scores: Tensor, batch: Batch, generator: Generator | None) -> tuple[Tensor, float]:
    """The coefficient of each sequence and the loss: d(-log q_answer) = Σ (answer? - q) · d(-log p(sequence))."""
    import torch

    coefficients = torch.zeros(len(batch.inputs), dtype=torch.float64)
    loss = 0.0
    for item, begin in zip(batch.items, batch.begins, strict=True):
        here = slice(begin, begin + len(item.ids))
        log_q = scores[here].log_softmax(dim=0)
        answer = item.answer
        assert answer is not None, "the items of a batch are of one kind"
        if generator is not None:
            answer = int(torch.multinomial(log_q.exp(), 1, generator=generator))
        loss -= float(log_q[answer])
        coefficients[here] = -log_q.exp()
        coefficients[begin + answer] += 1.0
    return coefficients, loss
