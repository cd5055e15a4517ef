"""Checkpoints on disk: where they are, what their headers say, and the digest that identifies them."""

from __future__ import annotations

from planner.checkpoint.fingerprint import (
    digest_bytes,
    digest_file,
    fingerprint_checkpoint,
    fingerprint_of,
    tensor_digests,
)
from planner.checkpoint.folder import Checkpoint, Shard, Tensor, open_checkpoint
from planner.checkpoint.header import encode_header, read_header
from planner.checkpoint.reading import TensorReader
from planner.checkpoint.sources import hub_cache, in_hub_cache, locate, set_aside
from planner.checkpoint.tokens import TokenChoice, TokenMeaning, TokensUnresolved, find_tokens

__all__ = [
    "Checkpoint",
    "Shard",
    "Tensor",
    "TensorReader",
    "TokenChoice",
    "TokenMeaning",
    "TokensUnresolved",
    "digest_bytes",
    "digest_file",
    "encode_header",
    "find_tokens",
    "fingerprint_checkpoint",
    "fingerprint_of",
    "hub_cache",
    "in_hub_cache",
    "locate",
    "open_checkpoint",
    "read_header",
    "set_aside",
    "tensor_digests",
]
