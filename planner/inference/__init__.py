"""Running a checkpoint as a language model: texts, tokens, batches, logits.

Importing this package loads neither torch nor transformers; its functions do.
"""

from __future__ import annotations

from planner.inference.batches import batches, logits_of, padded
from planner.inference.documents import load_documents, parse_documents, read_text_file
from planner.inference.loading import (
    context_of,
    cores,
    encode,
    load_model,
    load_tokenizer,
    quiet,
    require_torch,
)
from planner.inference.overlay import overlaid, parameters_by_tensor

__all__ = [
    "batches",
    "context_of",
    "cores",
    "encode",
    "load_documents",
    "load_model",
    "load_tokenizer",
    "logits_of",
    "overlaid",
    "padded",
    "parameters_by_tensor",
    "parse_documents",
    "quiet",
    "read_text_file",
    "require_torch",
]
