"""Two models to compare, refused where a comparison would mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import CheckpointError
from planner.inference import context_of, encode, load_model, load_tokenizer

__all__ = ["Pair", "load_itself", "load_pair", "tokenize"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Baseline and candidate, in float32 on the CPU, in evaluation mode."""

    baseline: Any
    candidate: Any
    tokenizers: tuple[Any, Any]
    context: int | None
    """The longest input both models take, in tokens; None when their configurations do not say."""
    vocabulary: int
    """Rows of the smaller token embedding."""


def load_pair(baseline: Path, candidate: Path) -> Pair:
    """Load both checkpoint folders. Raises `CheckpointError` when one cannot be loaded completely."""
    return _paired([load_model(path) for path in (baseline, candidate)], (baseline, candidate))


def load_itself(path: Path) -> Pair:
    """One checkpoint folder as both sides, loaded once. Raises as `load_pair` does."""
    return _paired([load_model(path)] * 2, (path, path))


def _paired(models: list[Any], paths: tuple[Path, Path]) -> Pair:
    tokenizers = {path: load_tokenizer(path) for path in dict.fromkeys(paths)}
    contexts = [context for model in models if (context := context_of(model)) is not None]
    return Pair(
        baseline=models[0],
        candidate=models[1],
        tokenizers=(tokenizers[paths[0]], tokenizers[paths[1]]),
        context=min(contexts, default=None),
        vocabulary=min(int(model.get_input_embeddings().weight.shape[0]) for model in models),
    )


def tokenize(pair: Pair, documents: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    """Token ids of each document, by both tokenizers.

    Raises `CheckpointError` when the two tokenizers disagree on a document or name tokens that a model does not have:
    losses over different tokens cannot be compared.
    """
    ours, theirs = (encode(tokenizer, documents, max_tokens, pair.context) for tokenizer in pair.tokenizers)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        if one != other:
            raise CheckpointError(
                f"the tokenizers of baseline and candidate cut document {number} into different tokens",
                hint="compare checkpoints that share a tokenizer",
            )
        if max(one, default=0) >= pair.vocabulary:
            raise CheckpointError(
                f"document {number} has token {max(one)}, but a model has only {pair.vocabulary} tokens",
                hint="the tokenizer files do not belong to this checkpoint",
            )
    return ours
