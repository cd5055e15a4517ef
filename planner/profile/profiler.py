"""From a checkpoint to its profile: every tensor read once for its digest and its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from blake3 import blake3

from planner import __version__
from planner.architecture import role_of
from planner.checkpoint import Checkpoint, Tensor, fingerprint_of
from planner.dtypes import FloatDtype, float_dtype
from planner.dtypes.floats import Patterns
from planner.profile.statistics import statistics_of
from planner.profile.types import Profile, Statistics, TensorProfile

__all__ = ["profile_checkpoint"]

Progress = Callable[[int], None]


def profile_checkpoint(checkpoint: Checkpoint, *, progress: Progress | None = None) -> Profile:
    """Profile every tensor. `progress` is told the bytes read, `checkpoint.nbytes` in all."""
    tensors = tuple(_profile_tensor(checkpoint, tensor, progress or _silent) for tensor in checkpoint.tensors.values())
    tied = checkpoint.config.get("tie_word_embeddings")
    model_type = checkpoint.config.get("model_type")
    return Profile(
        name=checkpoint.name,
        fingerprint=fingerprint_of(checkpoint, {tensor.name: tensor.digest for tensor in tensors}),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        planner_version=__version__,
        model_type=model_type if isinstance(model_type, str) else None,
        tied_embeddings=tied if isinstance(tied, bool) else None,
        parameters=sum(tensor.elements for tensor in tensors),
        bytes=checkpoint.nbytes,
        tensors=tensors,
    )


def _silent(_: int) -> None:
    pass


def _profile_tensor(checkpoint: Checkpoint, tensor: Tensor, progress: Progress) -> TensorProfile:
    hasher = blake3()
    hashed = False

    def raw() -> Iterator[bytes]:
        """The bytes; the first time through they are hashed as well, so that a 16-bit tensor is read once."""
        nonlocal hashed
        for chunk in checkpoint.chunks(tensor):
            if not hashed:
                hasher.update(chunk)
                progress(len(chunk))
            yield chunk
        hashed = True

    dtype = float_dtype(tensor.dtype)
    statistics = statistics_of(lambda: _patterns(raw(), dtype), dtype) if dtype else _only_hashed(raw())
    role = role_of(tensor.name)
    return TensorProfile(
        name=tensor.name,
        role=role.role,
        layer=role.layer,
        dtype=tensor.dtype,
        shape=tensor.shape,
        elements=tensor.elements,
        digest="blake3:" + hasher.hexdigest(),
        understood=dtype is not None,
        **statistics.model_dump(),
    )


def _patterns(chunks: Iterator[bytes], dtype: FloatDtype) -> Iterator[Patterns]:
    for chunk in chunks:
        yield dtype.patterns(chunk)


def _only_hashed(chunks: Iterator[bytes]) -> Statistics:
    for _ in chunks:
        pass
    return Statistics()
