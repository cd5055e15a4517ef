"""Documents as batches of token ids, and the logits of a model on them, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["batches", "logits_of", "padded"]


def batches(lengths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Places of documents of like length, longest first: at most `width` tokens with padding, or one document."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > width:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def padded(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and mask, each [documents, longest - 1]: at every real position, the target is the next token."""
    import torch

    longest = max(len(ids) for ids in documents) - 1
    inputs = torch.zeros(len(documents), longest, dtype=torch.int64)
    targets = torch.zeros_like(inputs)
    mask = torch.zeros_like(inputs)
    for row, ids in enumerate(documents):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
        mask[row, : len(ids) - 1] = 1
    return inputs, targets, mask


def logits_of(model: Any, inputs: Tensor, mask: Tensor, width: int) -> Iterator[Tensor]:
    """Logits of consecutive positions, [documents, positions, vocabulary]: at most `width` of a document at once.

    The rest of a long document is continued from cached keys and values, which changes nothing but the rounding.
    """
    if inputs.shape[1] <= width:
        # Without padding there is nothing to mask, and attention has a faster path.
        needed = None if bool(mask.all()) else mask
        yield model(input_ids=inputs, attention_mask=needed, use_cache=False).logits
        return
    import torch

    cache = None
    for piece in torch.split(inputs, width, dim=1):
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise CheckpointError(
                f"a {type(model).__name__} cannot read a document of {inputs.shape[1]} tokens in pieces of {width}",
                hint="set a smaller max_tokens in the suite",
            )
        logits = output.logits
        del output
        yield logits
        del logits
