"""Two checkpoints as models to compare: loaded offline, quietly, and refused where a comparison would mean nothing."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from planner.errors import CheckpointError, ExtraMissing

__all__ = ["Pair", "cores", "load_pair", "quiet", "require_torch", "tokenize"]


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


def require_torch() -> None:
    """Raise `ExtraMissing` unless torch and transformers can be imported."""
    for module in ("torch", "transformers"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExtraMissing(
                f"evaluating needs {module}, which cannot be imported: {error}",
                hint="install the extra: pip install 'model-patch-planner[torch]' (in a checkout: '.[torch]')",
            ) from None


def cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def quiet() -> Iterator[None]:
    """Offline, without warnings and progress bars of transformers, on all cores; everything as before afterwards."""
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    threads, offline = torch.get_num_threads(), os.environ.get("HF_HUB_OFFLINE")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(cores())
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_pair(baseline: Path, candidate: Path) -> Pair:
    """Load both checkpoint folders. Raises `CheckpointError` when one cannot be loaded completely."""
    models = [_load_model(path) for path in (baseline, candidate)]
    contexts = [context for model in models if (context := _context(model)) is not None]
    return Pair(
        baseline=models[0],
        candidate=models[1],
        tokenizers=(_load_tokenizer(baseline), _load_tokenizer(candidate)),
        context=min(contexts, default=None),
        vocabulary=min(int(model.get_input_embeddings().weight.shape[0]) for model in models),
    )


# What transformers and safetensors raise for checkpoints that are damaged or of a kind they do not know.
_LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError
)  # fmt: skip


def _load_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"transformers cannot load {path}: {_first_line(error)}",
            hint="check the folder; code from a checkpoint and pickle files are never run or opened",
        ) from error
    # transformers fills a missing tensor with random numbers and only warns; its loss would be a random number too.
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors that its model needs, such as {missing[0]}",
            hint="the checkpoint is incomplete; it was not evaluated",
        )
    return model.eval()


_TOKENIZER_FILES = ("tokenizer.*", "vocab.*", "spiece.model", "sentencepiece*", "*.tiktoken", "tekken.json")


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        # Without such a file transformers builds the architecture's usual tokenizer with an empty vocabulary.
        if not any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise FileNotFoundError("there is none")
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {path}: {_first_line(error)}",
            hint="a checkpoint that is evaluated needs its tokenizer files beside the weights",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _context(model: Any) -> int | None:
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def tokenize(pair: Pair, documents: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    """Token ids of each document: the BOS token once, where the tokenizer has one, then at most `max_tokens` others.

    Raises `CheckpointError` when the two tokenizers disagree on a document or name tokens that a model does not have:
    losses over different tokens cannot be compared.
    """
    ours, theirs = (_encode(tokenizer, documents, max_tokens, pair.context) for tokenizer in pair.tokenizers)
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


def _encode(tokenizer: Any, documents: Sequence[str], max_tokens: int | None, context: int | None) -> list[list[int]]:
    bos = tokenizer.bos_token_id
    prefix = [] if bos is None else [int(bos)]
    encoded: list[list[int]] = []
    for ids in tokenizer(list(documents), add_special_tokens=False)["input_ids"]:
        # A tokenizer that adds BOS in spite of the argument, or a text that spells it out, must not lead to a second
        # one: predicting BOS after BOS is a task of its own that no text poses.
        body = ids[1:] if prefix and ids[:1] == prefix else ids
        encoded.append((prefix + body[:max_tokens])[:context])
    return encoded
