"""From a checkpoint to its profile: every tensor read once for its digest and its statistics."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planner import __version__
from planner.architecture import fused_experts, head_layout, role_of
from planner.checkpoint import Checkpoint, Shard, Tensor, fingerprint_of
from planner.dtypes import number_dtype
from planner.profile.findings import findings_of
from planner.profile.spectra import Spectrum, require_extra, spectrum_of
from planner.profile.sweep import Found, Progress, Task, sweep
from planner.profile.tallies import Described, Norms
from planner.profile.ties import same_bytes_of, tied_by, ties_of
from planner.profile.types import Element, Experts, HeadNorms, Profile, Statistics, TensorProfile

__all__ = ["Keeper", "profile_checkpoint", "tensor_profiles"]

_BLOCK = 4 * 2**20


class Keeper(Protocol):
    """Keeps what a profile takes long to find out, shard by shard, and the histograms."""

    def kept(self, shard: Shard) -> list[TensorProfile] | None:
        """The tensors of a shard, if an earlier run got as far."""

    def histogram(self, name: str, counts: NDArray[np.int64]) -> None:
        """The histogram of a tensor of the shard at hand; index = pattern."""

    def keep(self, shard: Shard, tensors: list[TensorProfile]) -> None:
        """The shard is done."""


def profile_checkpoint(
    checkpoint: Checkpoint,
    *,
    spectra: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Profile:
    """Profile every tensor, with `workers` threads: by default one for every core that the process may use.

    `progress` is told the bytes done: `checkpoint.nbytes` in all, with `spectra` once more. Raises `ShardTruncated` or
    `FileUnreadable`; with `spectra`, `ExtraMissing`.
    """
    if spectra:  # better now than after the hours that come before such a matrix
        require_extra(tensor.shape for tensor in checkpoint.tensors.values())
    advance = progress or (lambda _: None)
    tensors: list[TensorProfile] = []
    for shard in checkpoint.shards:
        done = keeper.kept(shard) if keeper else None
        if done is None:
            done = _shard(checkpoint, shard, spectra, workers, advance, keeper)
            if keeper:
                keeper.keep(shard, done)
        else:
            advance(sum(entry.nbytes for entry in shard.header.entries) * (2 if spectra else 1))
        tensors += done
    model_type = checkpoint.config.get("model_type")
    profile = Profile(
        name=checkpoint.name,
        fingerprint=fingerprint_of(checkpoint, {tensor.name: tensor.digest for tensor in tensors}),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        planner_version=__version__,
        model_type=model_type if isinstance(model_type, str) else None,
        tied_embeddings=tied_by(checkpoint.config),
        parameters=sum(tensor.elements for tensor in tensors),
        bytes=checkpoint.nbytes,
        spectra=spectra,
        tensors=tuple(tensors),
        ties=ties_of(tensors, checkpoint.config),
        same_bytes=same_bytes_of(tensors),
        warnings=checkpoint.warnings,
    )
    return profile.model_copy(update={"findings": findings_of(profile)})


def tensor_profiles(
    checkpoint: Checkpoint, *, workers: int | None = None, progress: Progress | None = None
) -> Generator[TensorProfile]:
    """The tensors of `profile_checkpoint`, each as soon as it is done, for who need not have all of them at once."""
    for shard in checkpoint.shards:
        yield from _swept(checkpoint, shard, workers, progress or (lambda _: None), None)


def _shard(
    checkpoint: Checkpoint,
    shard: Shard,
    spectra: bool,
    workers: int | None,
    progress: Progress,
    keeper: Keeper | None,
) -> list[TensorProfile]:
    found = {profile.name: profile for profile in _swept(checkpoint, shard, workers, progress, keeper)}
    profiles = [found[entry.name] for entry in shard.header.entries]
    return [_with_spectra(checkpoint, profile, progress) for profile in profiles] if spectra else profiles


def _swept(
    checkpoint: Checkpoint, shard: Shard, workers: int | None, progress: Progress, keeper: Keeper | None
) -> Iterator[TensorProfile]:
    tensors = [checkpoint.tensors[entry.name] for entry in shard.header.entries]
    tasks = [Task(tensor, fused_experts(tensor.name, tensor.shape)) for tensor in tensors]
    with closing(sweep(checkpoint, tasks, workers=workers, progress=progress)) as results:
        for result in results:
            if keeper and result.whole:
                keeper.histogram(result.tensor.name, result.whole.counts)
            yield _tensor_profile(result, checkpoint.config)


def _tensor_profile(found: Found, config: dict[str, Any]) -> TensorProfile:
    tensor, whole = found.tensor, found.whole
    role = role_of(tensor.name)
    norms = whole.norms if whole and whole.statistics.mean is not None else None  # nothing finite: nothing to say
    return TensorProfile(
        name=tensor.name,
        role=role.role,
        layer=role.layer,
        expert=role.expert,
        dtype=tensor.dtype,
        shape=tensor.shape,
        elements=tensor.elements,
        digest=found.digest,
        understood=whole is not None,
        rows=norms.row_summary() if norms else None,
        columns=norms.column_summary() if norms else None,
        heads=_heads(norms, role.role, tensor.shape, config) if norms else (),
        largest=_elements(whole, tensor.shape) if whole else (),
        experts=_experts(found.experts) if found.experts else None,
        **(dict(whole.statistics) if whole else {}),
    )


def _heads(norms: Norms, role: str, shape: tuple[int, ...], config: dict[str, Any]) -> tuple[HeadNorms, ...]:
    return tuple(
        HeadNorms(
            part=band.part,
            axis=band.axis,
            width=band.width,
            norms=found,
        )
        for band in head_layout(role, shape, config)
        if (found := norms.bands(band.axis, band.start, band.count, band.width))
    )


def _elements(whole: Described, shape: tuple[int, ...]) -> tuple[Element, ...]:
    places = np.array([place for place, _ in whole.largest], dtype=np.intp)
    indices = zip(*(axis.tolist() for axis in np.unravel_index(places, shape)), strict=True) if shape else [()]
    return tuple(Element(index=index, value=value) for index, (_, value) in zip(indices, whole.largest, strict=False))


def _experts(each: tuple[Statistics, ...]) -> Experts:
    return Experts(
        count=len(each),
        mean=tuple(one.mean for one in each),
        std=tuple(one.std for one in each),
        rms=tuple(one.rms for one in each),
        abs_max=tuple(one.abs_max for one in each),
        kurtosis=tuple(one.kurtosis for one in each),
        zeros=tuple(one.zeros for one in each),
        nonfinite=tuple(one.nan + one.inf for one in each),
    )


def _with_spectra(checkpoint: Checkpoint, profile: TensorProfile, progress: Progress) -> TensorProfile:
    tensor, experts = checkpoint.tensors[profile.name], profile.experts
    found: dict[str, Any] = {}
    if experts:
        each = tuple(_spectrum(checkpoint, tensor, part, experts.count) for part in range(experts.count))
        found = {"experts": experts.model_copy(update={"spectra": each})}
    elif len(tensor.shape) == 2 and min(tensor.shape) > 1:
        found = {"spectrum": _spectrum(checkpoint, tensor, 0, 1)}
    progress(tensor.nbytes)
    return profile.model_copy(update=found)


def _spectrum(checkpoint: Checkpoint, tensor: Tensor, part: int, parts: int) -> Spectrum | None:
    dtype = number_dtype(tensor.dtype)
    if dtype is None:
        return None
    rows, columns = tensor.shape[-2:]
    share = tensor.nbytes // parts
    slab = replace(tensor, begin=tensor.begin + part * share, nbytes=share)
    size = max(_BLOCK // (columns * dtype.itemsize), 1) * columns * dtype.itemsize

    def blocks() -> Iterator[NDArray[np.float32] | NDArray[np.float64]]:
        for chunk in checkpoint.chunks(slab, size=size):
            yield dtype.decode_float64(np.frombuffer(chunk, dtype.pattern)).reshape(-1, columns)

    return spectrum_of(blocks, (rows, columns))
