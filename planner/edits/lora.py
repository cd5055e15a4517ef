"""LoRA adapters as PEFT stores them: which tensors of a checkpoint they change, and by what.

A folder with adapter_config.json and adapter_model.safetensors. What the configuration asks for and a sum of weights
cannot do is refused; nothing is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint.header import Entry, shown
from planner.edits.lora_config import CONFIG, LoraConfig, read_lora_config
from planner.edits.sidecar import Sidecar, Unsound, inside, open_sidecar
from planner.errors import AdapterUnusable

__all__ = ["Adapter", "LowRank", "open_adapter"]

_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?P<adapter>(?!weight$)[^.]+))?(?P<weight>\.weight)?"
)
_HINT = "check the path, which is relative to the plan's folder, and that the adapter was made for this model"


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to a tensor: scaling · (b @ a), in the orientation of the stored tensor."""

    b: NDArray[np.float64]
    """[rows, r]."""
    a: NDArray[np.float64]
    """[r, columns]."""
    scaling: float


@dataclass(frozen=True)
class _Pair:
    """The two arrays of one module."""

    module: str
    a: Entry
    """[r, in]."""
    b: Entry
    """[out, r]."""
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that fits a checkpoint."""

    file: Sidecar
    """adapter_model.safetensors, no longer open."""
    config: LoraConfig
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the checkpoint's tensors."""
    pairs: Mapping[str, _Pair]
    """By the name of the checkpoint's tensor."""

    @property
    def digest(self) -> str:
        """Digest of adapter_model.safetensors; that of its configuration is `config.digest`."""
        return self.file.digest

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors that it changes."""
        return tuple(self.pairs)

    def update(self, tensor: str, *, transposed: bool | None = None) -> LowRank:
        """What it adds to `tensor`, one of `tensors`.

        `transposed` says that the tensor is stored [in, out], as a Conv1D's is. Where that is not known, the shape
        tells; for a square tensor the adapter's fan_in_fan_out does, which PEFT sets so for the last module it met.
        Raises `AdapterUnusable`, also where the file is no longer the one that was opened.
        """
        pair = self.pairs[tensor]
        turned = self._turned(tensor, pair, transposed)
        try:
            with open_sidecar(self.file.path, known=self.file) as found:
                if found.digest != self.digest:
                    raise Unsound("it was changed since the plan was read")
                a, b = found.read(pair.a.name), found.read(pair.b.name)
        except Unsound as error:
            raise _unusable(self.file.path, str(error)) from None
        if turned:
            a, b = b.T, a.T
        return LowRank(b=b, a=a, scaling=self.config.scaling(pair.module))

    def _turned(self, tensor: str, pair: _Pair, transposed: bool | None) -> bool:
        """Whether the stored tensor is the transpose of B·A."""
        stored, product = self.shapes[tensor], (pair.b.shape[0], pair.a.shape[1])
        fitting = [turned for turned in (False, True) if stored == (product[::-1] if turned else product)]
        if pair.embedding:
            wanted: bool | None = True  # the rows of the table are what goes in
        else:
            wanted = transposed
            if wanted is None and len(fitting) == 2:
                wanted = self.config.fan_in_fan_out
        chosen = fitting if wanted is None else [turned for turned in fitting if turned == wanted]
        if not chosen:
            what = f"its change of {shown(tensor)} is {product[0]} x {product[1]}; the tensor is {list(stored)[:8]}"
            raise _unusable(self.file.path, what)
        return chosen[0]


def open_adapter(name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter in the folder that a plan in `folder` calls `name`, for a checkpoint whose tensors have `shapes`.

    The plan's folder must contain it unless `name` is absolute. Only headers are read. Raises `AdapterUnusable` for
    what is missing or malformed, for a pickle, for an adapter that is more than a sum of weights (DoRA, biases, whole
    modules, another peft_type), and for one that changes a tensor the checkpoint has not, or not in that shape.
    """
    try:
        path, config_path = inside(folder, f"{name}/{_WEIGHTS}"), inside(folder, f"{name}/{CONFIG}")
        if not path.exists() and path.with_name(_PICKLED).exists():
            raise Unsound(f"it is stored as a pickle, {_PICKLED}, which is never opened; save it as safetensors")
        config = read_lora_config(config_path)
        with open_sidecar(path) as found:
            pairs: dict[str, _Pair] = {}
            names = _Names(shapes)
            for module, arrays in _modules(found.entries).items():
                pair = _pair(module, arrays, config)
                tensor = names.weight_of(module)
                if tensor in pairs:
                    raise Unsound(f"two of its modules change {shown(tensor)}")
                pairs[tensor] = pair
    except Unsound as error:
        raise _unusable(Path(name), str(error)) from None
    adapter = Adapter(found, config, dict(shapes), pairs)
    for tensor, pair in pairs.items():
        adapter._turned(tensor, pair, None)
    return adapter


def _unusable(path: Path, what: str) -> AdapterUnusable:
    return AdapterUnusable(f"the LoRA adapter {shown(str(path))}: {what}", hint=_HINT)


def _modules(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The arrays of each module by `A`, `B`, `embedding_A` or `embedding_B`, in the order of the file."""
    modules: dict[str, dict[str, Entry]] = {}
    adapters = set()
    for name, entry in entries.items():
        found = _NAME.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if not found or (found["weight"] is None) != bool(found["embedding"]):
            raise Unsound(f"it has the array {shown(name)}, which is neither A nor B of a low-rank change")
        adapters.add(found["adapter"])
        side = (found["embedding"] or "") + found["side"]
        if side in (arrays := modules.setdefault(found["module"], {})):
            raise Unsound(f"it has two arrays for {side} of {shown(found['module'])}")
        arrays[side] = entry
    if len(adapters) > 1:
        raise Unsound(f"it holds {len(adapters)} adapters under different names")
    if not modules:
        raise Unsound("it holds no array")
    return modules


def _pair(module: str, arrays: Mapping[str, Entry], config: LoraConfig) -> _Pair:
    embedding = "embedding_A" in arrays
    prefix = "embedding_" if embedding else ""
    if arrays.keys() != {f"{prefix}A", f"{prefix}B"}:
        raise Unsound(f"the module {shown(module)} lacks A or B")
    a, b = arrays[f"{prefix}A"], arrays[f"{prefix}B"]
    rank = config.rank(module)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shapes = f"{list(a.shape)[:8]} and {list(b.shape)[:8]}"
        raise Unsound(f"A and B of {shown(module)} have the shapes {shapes}; the configuration says rank {rank}")
    return _Pair(module, a, b, embedding)


class _Names:
    """The names of a checkpoint's tensors, and how an adapter may call their modules."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._all = set(tensors)
        self._by_rest: dict[str, list[str]] = {}
        for tensor in self._all:
            self._by_rest.setdefault(tensor.partition(".")[2], []).append(tensor)

    def weight_of(self, module: str) -> str:
        """The tensor that is the weight of `module`.

        A model with a head calls its body by one more name than a model without, so one may be missing on either side.
        """
        name = f"{module}.weight"
        longer = self._by_rest.get(name, [])
        for found in (name, name.partition(".")[2], *(longer if len(longer) == 1 else [])):
            if found in self._all:
                return found
        raise Unsound(f"it changes the module {shown(module)}, of which the checkpoint has no weight")
