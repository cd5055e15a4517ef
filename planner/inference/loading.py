"""A checkpoint as a model that runs: loaded offline, quietly, completely or not at all; texts as its tokens."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from planner.errors import CheckpointError, ExtraMissing

__all__ = ["context_of", "cores", "encode", "load_model", "load_tokenizer", "quiet", "require_torch"]


def require_torch(what: str = "evaluating") -> None:
    """Raise `ExtraMissing` unless torch and transformers can be imported."""
    for module in ("torch", "transformers"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExtraMissing(
                f"{what} needs {module}, which cannot be imported: {error}",
                hint="install the extra: pip install 'model-patch-planner[torch]' (in a checkout: '.[torch]')",
            ) from None


def cores() -> int:
    """The cores this process may use: in a container fewer than the machine has, and no more than OMP_NUM_THREADS."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(asked)) if asked.isdecimal() and int(asked) else allowed


@contextmanager
def quiet(model: Any = None) -> Iterator[None]:
    """Offline, without warnings and progress bars of transformers; everything as before afterwards.

    On all cores, or on as many as suit `model`, or the model that is loaded within.
    """
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    threads, offline = torch.get_num_threads(), os.environ.get("HF_HUB_OFFLINE")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(cores() if model is None else _threads_for(model))
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


# What transformers and safetensors raise for checkpoints that are damaged or of a kind they do not know.
_LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError
)  # fmt: skip


def load_model(path: Path, *, dtype: Any = None) -> Any:
    """The causal language model in a folder, on the CPU, in evaluation mode; in float32 unless `dtype` says otherwise.

    Raises `CheckpointError` when it cannot be loaded completely. No code from the checkpoint is run.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or torch.float32,
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
            hint="the checkpoint is incomplete; nothing was measured",
        )
    torch.set_num_threads(_threads_for(model))  # until `quiet` ends
    return model.eval()


_SMALL = 2**23
"""Parameters below which threads spend more time waiting for each other than they save: twice, on two cores."""
_TOKENIZER_FILES = ("tokenizer.*", "vocab.*", "spiece.model", "sentencepiece*", "*.tiktoken", "tekken.json")


def _threads_for(model: Any) -> int:
    return 1 if sum(parameter.numel() for parameter in model.parameters()) < _SMALL else cores()


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder. Raises `CheckpointError` when there is none that loads."""
    from transformers import AutoTokenizer

    try:
        # Without such a file transformers builds the architecture's usual tokenizer with an empty vocabulary.
        if not any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise FileNotFoundError("there is none")
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {path}: {_first_line(error)}",
            hint="a checkpoint that is run needs its tokenizer files beside the weights",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def context_of(model: Any) -> int | None:
    """The longest input it takes, in tokens; None when its configuration does not say."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def encode(tokenizer: Any, documents: Sequence[str], max_tokens: int | None, context: int | None) -> list[list[int]]:
    """Token ids of each document: the BOS token once, where the tokenizer has one, then at most `max_tokens` others.

    Nothing beyond `context` tokens is kept.
    """
    bos = tokenizer.bos_token_id
    prefix = [] if bos is None else [int(bos)]
    encoded: list[list[int]] = []
    for ids in tokenizer(list(documents), add_special_tokens=False)["input_ids"]:
        # A tokenizer that adds BOS in spite of the argument, or a text that spells it out, must not lead to a second
        # one: predicting BOS after BOS is a task of its own that no text poses.
        body = ids[1:] if prefix and ids[:1] == prefix else ids
        encoded.append((prefix + body[:max_tokens])[:context])
    return encoded
