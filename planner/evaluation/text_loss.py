"""The loss of models on the same documents, in one pass over the same batches.

Mostly two models are compared; it is one alone where what it is compared with was measured before. A model may also be
one that is loaded already, with other weights while it runs. A document's loss is the sum over its tokens, from the
second on, of -log p(token | tokens before it), in nats. The same logits also give the loss at other temperatures and,
where asked for, how far the candidate's predictions have drifted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import CheckpointError
from planner.evaluation.pair import Pair
from planner.evaluation.temperature import CENTRES, FIRST_NODE, NODE_STEP, NODES, Curves
from planner.inference import batches, logits_of, padded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DriftCounts", "Losses", "Measurement", "Weighted", "measure", "measure_models"]

Floats = NDArray[np.float64]
Step = Callable[[int], None]

# Logits of one model that are held at a time: 128 MiB. With small vocabularies activations are what fills memory, so a
# batch has at most _BATCH_TOKENS tokens as well.
_LOGITS_ELEMENTS = 2**25
_BATCH_TOKENS = 4096
# Logits are reduced in pieces that stay in the processor's cache.
_CHUNK_ELEMENTS = 2**19
_PILOT_DOCUMENTS, _PILOT_TOKENS = 8, 64


@dataclass(frozen=True, eq=False)
class Weighted:
    """A model, and the weights it is to run with."""

    model: Any
    """A causal language model of transformers."""
    weights: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes a context in which the model has these weights; by default it has them already."""


@dataclass(frozen=True, eq=False)
class Losses:
    """One model's losses on n documents."""

    nll: Floats
    """Shape [n]: nats, summed over the predicted tokens. Not finite where the model's output was not."""
    curves: Curves
    """The same at other temperatures."""

    def taken(self, places: NDArray[np.int64]) -> Losses:
        """Those of the documents at these places, in this order."""
        return Losses(self.nll[places], Curves(self.curves.centre, self.curves.values[places]))


@dataclass(frozen=True, eq=False)
class DriftCounts:
    """Per predicted token, in no particular order, how the candidate's prediction differs from the baseline's."""

    kl: NDArray[np.float32]
    """Shape [tokens]: KL(baseline || candidate) in nats."""
    same_top: int
    """Tokens at which both hold the same continuation for the most likely."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one pass over one text found."""

    tokens: Floats
    """Shape [n]: the predicted tokens of each document."""
    baseline: Losses
    candidate: Losses
    drift: DriftCounts | None


def measure(pair: Pair, documents: Sequence[Sequence[int]], *, drift: bool, step: Step | None = None) -> Measurement:
    """Run both models over `documents` (token ids, each of at least two tokens).

    `step` is called with the number of tokens just finished. Losses do not depend on which documents share a batch,
    except for float32 rounding. Memory beyond the models: two blocks of logits of at most 128 MiB each, whatever the
    vocabulary and the length of a document (a recurrent model's longest document stays whole), and the pieces they are
    reduced in.

    Raises `CheckpointError` when the two models do not predict the same number of tokens.
    """
    models = (Weighted(pair.baseline), Weighted(pair.candidate))
    (baseline, candidate), counts = measure_models(
        models, documents, vocabulary=pair.vocabulary, drift=drift, step=step
    )
    tokens = np.array([len(ids) - 1 for ids in documents], dtype=np.float64)
    return Measurement(tokens=tokens, baseline=baseline, candidate=candidate, drift=counts)


def measure_models(
    models: Sequence[Weighted],
    documents: Sequence[Sequence[int]],
    *,
    vocabulary: int,
    drift: bool = False,
    batch_tokens: int | None = None,
    step: Step | None = None,
) -> tuple[tuple[Losses, ...], DriftCounts | None]:
    """As `measure`, for any number of models: the losses of each, and with `drift` the divergence of the first two.

    `vocabulary`: about how many tokens the models predict. `batch_tokens`: fewer tokens a batch than usual; a document
    that is longer is a batch by itself. Models that are one object with different weights change them for each block.
    """
    import torch

    with torch.inference_mode():
        sums = []
        for side in models:
            with side.weights():
                sums.append(_Sums(len(documents), _centre(side.model, documents)))
        tokens = [len(ids) - 1 for ids in documents]
        # One array from the start: a small one for each piece would pin the memory that the pieces leave behind.
        kl = torch.empty(sum(tokens) if drift else 0)
        seen = same_top = 0
        # A guess is enough: a model whose head is padded beyond the embedding only gets somewhat larger blocks.
        width = max(1, min(_BATCH_TOKENS, _LOGITS_ELEMENTS // vocabulary))
        # A recurrent model (transformers says "stateful") does not resume from its cache with more than one token.
        resumable = not any(getattr(side.model, "_is_stateful", False) for side in models)
        for batch in batches(tokens, min(batch_tokens or width, width)):
            inputs, targets, mask = padded([documents[place] for place in batch])
            at_once = width if resumable else inputs.shape[1]
            owners = torch.tensor(batch).unsqueeze(1).expand_as(inputs)
            runs = [logits_of(side.model, inputs, mask, at_once) for side in models]
            for start in range(0, inputs.shape[1], at_once):
                logits = []
                for side, run in zip(models, runs, strict=True):
                    with side.weights():
                        logits.append(next(run).flatten(0, 1))
                if len({block.shape for block in logits}) > 1:
                    sizes = " and ".join(str(block.shape[-1]) for block in logits)
                    raise CheckpointError(
                        f"baseline and candidate predict different numbers of tokens: {sizes}",
                        hint="compare checkpoints that share a vocabulary",
                    )
                here = slice(start, start + at_once)
                real = mask[:, here].flatten().nonzero().squeeze(1)
                target, owner = targets[:, here].flatten(), owners[:, here].flatten()
                for rows in torch.split(real, max(1, _CHUNK_ELEMENTS // logits[0].shape[-1])):
                    sides = [
                        _reduce(block[rows], target[rows], owner[rows], side)
                        for block, side in zip(logits, sums, strict=True)
                    ]
                    if drift:
                        kl[seen : seen + len(rows)] = _divergence(sides[0][0], sides[1][0])
                        seen += len(rows)
                        same_top += int((sides[0][1] == sides[1][1]).sum())
                del logits  # before the next blocks are computed
            if step is not None:
                step(sum(tokens[place] for place in batch))
    return tuple(side.losses() for side in sums), DriftCounts(kl.numpy(), same_top) if drift else None


class _Sums:
    """Sums per document of one model, in float64."""

    def __init__(self, documents: int, centre: float) -> None:
        import torch

        self.centre = centre
        self.nll = torch.zeros(documents, dtype=torch.float64)
        self.curves = torch.zeros(documents, NODES, dtype=torch.float64)

    def losses(self) -> Losses:
        return Losses(nll=self.nll.numpy(), curves=Curves(centre=self.centre, values=self.curves.numpy()))


def _reduce(logits: Tensor, target: Tensor, owner: Tensor, sums: _Sums) -> tuple[Tensor, Tensor]:
    """Add the losses of r rows of logits, [r, vocabulary], to `sums`.

    Returns the log-probabilities, [r, vocabulary], and the most likely tokens, [r, 1].
    """
    import torch

    highest, top = logits.max(dim=-1, keepdim=True)
    logits = logits - highest
    chosen = logits.gather(1, target.unsqueeze(1))
    log_sum = logits.exp().sum(dim=-1, keepdim=True).log_()
    sums.nll.index_add_(0, owner, (log_sum - chosen).squeeze(1).double())
    # The nodes are equally spaced, so exp(b z) at the next node is exp(b z) times exp(step z): two exponentials for all
    # of them. Every factor is at most 1, and the rounding of 15 products is about 1e-6.
    power = torch.exp(logits * (FIRST_NODE * sums.centre))
    factor = torch.exp(logits * (NODE_STEP * sums.centre))
    at_nodes = torch.empty(len(logits), NODES)
    for node in range(NODES):
        if node:
            power *= factor
        torch.sum(power, dim=-1, out=at_nodes[:, node])
    inverse_temperatures = sums.centre * (FIRST_NODE + NODE_STEP * torch.arange(NODES))
    sums.curves.index_add_(0, owner, (at_nodes.log_() - inverse_temperatures * chosen).double())
    return logits.sub_(log_sum), top


def _divergence(baseline: Tensor, candidate: Tensor) -> Tensor:
    """KL(baseline || candidate) of each row of log-probabilities, in nats, shape [r].

    sum(p log(p/q) + q - p): the last two sum to zero, and make every term non-negative, so that the rounding of small
    divergences does not leave a negative one.
    """
    p, q = baseline.exp(), candidate.exp()
    return ((baseline - candidate) * p + (q - p)).sum(dim=-1).clamp_(min=0.0)


def _centre(model: Any, documents: Sequence[Sequence[int]]) -> float:
    """The inverse temperature, out of `CENTRES`, that is best for the beginnings of a few documents."""
    import torch

    stride = max(1, len(documents) // _PILOT_DOCUMENTS)
    totals = torch.zeros(len(CENTRES), dtype=torch.float64)
    for ids in documents[::stride][:_PILOT_DOCUMENTS]:
        inputs, targets, mask = padded([ids[: _PILOT_TOKENS + 1]])
        for piece in logits_of(model, inputs, mask, _PILOT_TOKENS):
            for place, inverse_temperature in enumerate(CENTRES):
                scaled = piece[0] * inverse_temperature
                losses = scaled.logsumexp(dim=-1) - scaled.gather(1, targets[0].unsqueeze(1)).squeeze(1)
                totals[place] += losses.sum(dtype=torch.float64)
    # A model with broken output has no best temperature; its losses will say so.
    return CENTRES[int(totals.argmin())] if bool(totals.isfinite().all()) else 1.0
