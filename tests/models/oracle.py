"""Logits of a tiny model from its stored tensors, all arithmetic in float64: what transformers itself computes."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from models.families import FAMILIES
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

# Neither bars on stderr for a file of 100 kB, nor words about ties that a test makes on purpose.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

__all__ = ["Machine", "all_double", "config_of", "machine", "stored_names", "token_ids"]

# Special tokens inside the small vocabulary; some defaults lie far outside and would not build.
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SEQUENCES, TOKENS = 2, 32
TINY_EPSILON = 1e-30
_ROUNDED = {torch.float32, torch.float16, torch.bfloat16}


class _Promotion(TorchDispatchMode):
    """Every cast to, and every tensor made in, a float narrower than float64 becomes float64.

    transformers computes norms, softmax, rotary angles and routers in float32 on purpose; that rounding would hide
    whether an edit is exactly void.
    """

    def __init__(self, epsilon: float | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("dtype") in _ROUNDED:
            kwargs = kwargs | {"dtype": torch.float64}
        if self.epsilon is not None and func is torch.ops.aten.native_layer_norm.default:
            args = (*args[:4], self.epsilon)  # olmo's is a constant in the code
        return func(*args, **(kwargs or {}))


@contextmanager
def all_double(epsilon: float | None = None) -> Iterator[None]:
    """Within: float64 by default, narrower casts promoted, no gradients, LayerNorm's epsilon as given if it is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Promotion(epsilon):
            yield
    finally:
        torch.set_default_dtype(default)


def config_of(key: str, overrides: tuple[tuple[str, Any], ...] = ()) -> transformers.PretrainedConfig:
    """The family's config object."""
    family = FAMILIES[key]
    arguments = {**SPECIAL, **family.arguments, **dict(overrides)}
    config = transformers.CONFIG_MAPPING[family.model_type](**arguments)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def token_ids() -> torch.Tensor:
    """2 x 32 token ids: every token of the vocabulary once, so that no row of the embedding is idle."""
    return torch.from_numpy(np.random.default_rng(7).permutation(SEQUENCES * TOKENS).reshape(SEQUENCES, TOKENS))


def stored_names(model: Any) -> dict[str, torch.Tensor]:
    """What `save_pretrained` puts on disk, under the names it uses there."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class Machine:
    """One built module, never tied, with a place in it for every stored tensor.

    Where a stored tensor lies in the module is found by saving the module with the running number of each element in
    place of its weight: the numbers that come out under a stored name are its elements' places, whatever renaming,
    splitting or transposing the saving does. `places` maps name -> (shape, flat indices into `memory`).
    """

    def __init__(self, key: str, overrides: tuple[tuple[str, Any], ...]) -> None:
        config = config_of(key, (*overrides, ("tie_word_embeddings", False)))
        with all_double():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
            self.model = model.double().eval()
        state = self.model.state_dict()
        sizes = [tensor.numel() for tensor in state.values()]
        self.memory = torch.zeros(sum(sizes), dtype=torch.float64)
        starts = np.cumsum([0, *sizes])
        numbers = torch.arange(sum(sizes), dtype=torch.float64)
        for start, tensor in zip(starts[:-1], state.values(), strict=True):
            tensor.copy_(numbers[start : start + tensor.numel()].view(tensor.shape))
        self.places: dict[str, tuple[tuple[int, ...], torch.Tensor | slice]] = {}
        for name, stored in stored_names(self.model).items():
            flat = stored.reshape(-1).long()
            first, last = int(flat[0]), int(flat[-1]) + 1
            dense = torch.equal(flat, torch.arange(first, last)) if last - first == len(flat) else False
            self.places[name] = (tuple(stored.shape), slice(first, last) if dense else flat)
        # From here on the module's own tensors are views of one memory, so that a stored tensor is written in one go.
        for start, name in zip(starts[:-1], state, strict=True):
            *path, leaf = name.split(".")
            owner = self.model.get_submodule(".".join(path))
            old = getattr(owner, leaf)
            old.data = self.memory[start : start + old.numel()].view(old.shape)
        self.kinds = {name: (owner, leaf) for name, owner, leaf in self._owners()}
        self.output = self._name_of(self.model.get_output_embeddings().weight)
        self.input = self._name_of(self.model.get_input_embeddings().weight)
        self.epsilons = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in vars(module).items()
            if "eps" in name and isinstance(value, float)
        ]
        self.ids = token_ids()
        self.holding: dict[str, np.ndarray[Any, Any]] = {}

    def _name_of(self, parameter: torch.Tensor) -> str:
        start = parameter.storage_offset()
        places = ((name, place) for name, (_, place) in self.places.items() if isinstance(place, slice))
        return next(name for name, place in places if place.start == start)

    def _owners(self) -> Iterator[tuple[str, Any, str]]:
        """Stored name, the module that holds (the first element of) it, and the attribute's name there."""
        spans = []
        for module in self.model.modules():
            for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.untyped_storage().data_ptr() == self.memory.untyped_storage().data_ptr():
                    spans.append((tensor.storage_offset(), tensor.numel(), module, leaf))
        for name, (_, place) in self.places.items():
            first = place.start if isinstance(place, slice) else int(place[0])
            yield next(
                (name, module, leaf) for offset, count, module, leaf in spans if offset <= first < offset + count
            )

    def hold(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put the stored tensors in their places; those that are there already (the same, frozen object) are left."""
        for name, (shape, place) in self.places.items():
            values = tensors[name]
            if self.holding.get(name) is values and not values.flags.writeable:
                continue
            if values.shape != shape:
                raise ValueError(f"{name} has shape {values.shape}, not {shape}")
            self.memory[place] = torch.tensor(values, dtype=torch.float64).reshape(-1)
            self.holding[name] = values

    def run(self, *, tiny_eps: bool = False) -> np.ndarray[Any, Any]:
        """Logits [positions, vocabulary] in float64 of what is held."""
        if tiny_eps:
            for module, name, _ in self.epsilons:
                setattr(module, name, TINY_EPSILON)
        try:
            with all_double(TINY_EPSILON if tiny_eps else None):
                out = self.model(input_ids=self.ids, use_cache=False).logits
        finally:
            for module, name, value in self.epsilons if tiny_eps else ():
                setattr(module, name, value)
        if out.dtype != torch.float64:
            raise TypeError(f"the logits came out in {out.dtype}")
        return out.reshape(SEQUENCES * TOKENS, -1).numpy().copy()

    def slopes(self) -> dict[str, np.ndarray[Any, Any]]:
        """The gradient of a random combination of the logits, by every element (flat) of every stored tensor held."""
        weights = torch.from_numpy(np.random.default_rng(11).normal(0, 1, (SEQUENCES, TOKENS, 1)))
        parameters = list(self.model.parameters())
        with all_double(), torch.enable_grad():
            out = self.model(input_ids=self.ids, use_cache=False).logits
            columns = weights.roll(1, 1) * torch.linspace(-1, 1, out.shape[-1])
            found = torch.autograd.grad(((weights + columns) * out).sum(), parameters, allow_unused=True)
        every = torch.zeros_like(self.memory)
        for parameter, slope in zip(parameters, found, strict=True):
            if slope is not None:
                start = parameter.storage_offset()
                every[start : start + parameter.numel()] = slope.reshape(-1)
        return {name: every[place].numpy() for name, (_, place) in self.places.items()}


_machine = functools.cache(Machine)


def machine(key: str, overrides: tuple[tuple[str, Any], ...] = ()) -> Machine:
    """The module of a family, built once in a process."""
    return _machine(key, overrides)


def written_config(key: str) -> dict[str, Any]:
    """config.json as `save_pretrained` writes it for the family, tied or not as it is."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(key)
        config.architectures = [type(machine(key).model).__name__]
        config.save_pretrained(folder)
        found: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    return found
