"""How well a model answers multiple-choice questions, as it is."""

from __future__ import annotations

from collections.abc import Sequence

from planner.probes.losses import log_likelihoods
from planner.probes.measuring import Machine, logits_of
from planner.probes.tasks import Group

__all__ = ["accuracy_and_margin"]


def accuracy_and_margin(machine: Machine, groups: Sequence[Group]) -> tuple[float, float]:
    """Share of questions whose right choice is likeliest; mean log p(right) - log of the sum of the others', nats."""
    import torch

    right = count = 0
    margin = 0.0
    with torch.no_grad():
        for group in groups:
            for batch in machine.batches(group):
                scores = log_likelihoods(logits_of(machine.model, batch), batch, [1.0])[0]
                for item, begin in zip(batch.items, batch.begins, strict=True):
                    mine = scores[begin : begin + len(item.ids)]
                    assert item.answer is not None
                    others = torch.cat([mine[: item.answer], mine[item.answer + 1 :]])
                    margin += float(mine[item.answer] - others.logsumexp(dim=0))
                    right += int(mine.argmax()) == item.answer
                    count += 1
    return right / count, margin / count
