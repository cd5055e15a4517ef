"""Models in float64 whose parameters are watched, losses written down plainly, and probes of the bundled model."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.oracle import TINY_EPSILON, _Promotion
from models.tiny import build

from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint, open_checkpoint
from planner.evidence import Layout
from planner.inference import encode, load_model, load_tokenizer, quiet
from planner.inference import loading as inference_loading
from planner.probes import Probed, ProbeRequest, probe
from planner.probes.measuring import Machine
from planner.probes.tasks import Group, Sequences, load_source, text_groups
from planner.probes.watching import watched_parameters

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
STORIES = TINY_MODEL / "texts" / "stories.search.jsonl"
INVENTORY = TINY_MODEL / "texts" / "inventory.search.jsonl"
FINGERPRINT = "blake3:" + "7" * 64

# Models as small as these are slower on several threads.
inference_loading.cores = lambda: 1
torch.set_num_threads(1)


@contextmanager
def exact() -> Iterator[None]:
    """Within, what transformers computes in float32 on purpose is float64, and epsilons of LayerNorm are tiny."""
    with _Promotion(TINY_EPSILON):
        yield


@functools.cache
def written(key: str, *, with_copy: bool = False, dtype: str = "F64") -> Path:
    """The folder of a family's tiny model."""
    return build(key, with_copy=with_copy).write(Path(tempfile.mkdtemp()) / "model", dtype)


def mapped(checkpoint: Checkpoint) -> ModelMap:
    return map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})


def double_machine(folder: Path, *, tiny_eps: bool = False, seed: int = 0) -> Machine:
    """A model in float64, watched."""
    checkpoint = open_checkpoint(folder)
    with quiet(), exact():
        model = load_model(folder, dtype=torch.float64)
    # Nothing that is written for narrow floats only.
    model.double().config._attn_implementation = model.config._experts_implementation = "eager"
    if tiny_eps:
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if "eps" in name and isinstance(value, float):
                    setattr(module, name, TINY_EPSILON)
    parameters, _ = watched_parameters(model, checkpoint, mapped(checkpoint))
    layout = Layout.of({name: checkpoint.tensors[name].shape for name in parameters})
    return Machine(model, parameters, layout, seed, torch.device("cpu"))


def documents(path: Path, count: int, tokens: int) -> list[Sequences]:
    """The first documents of a text, in tokens of the bundled model."""
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:count]]
    return [Sequences((tuple(ids),), (1,)) for ids in encode(load_tokenizer(TINY_MODEL), texts, tokens, None)]


def loss(machine: Machine, groups: Sequence[Group], b: float = 1.0) -> float:
    """Nats, summed over the items: the loss of tokens, or of right answers, with torch's own functions."""
    total = 0.0
    with torch.no_grad(), exact():
        for group in groups:
            for item in group.items:
                scores = torch.stack([_score(machine.model, ids, start, b) for ids, start in _parts(item)])
                answer = torch.tensor(item.answer or 0)
                mine = -scores[0] if item.answer is None else torch.nn.functional.cross_entropy(scores, answer)
                total += float(mine)
    return total


def _parts(item: Sequences) -> list[tuple[tuple[int, ...], int]]:
    return list(zip(item.ids, item.scored_from, strict=True))


def _score(model: Any, ids: tuple[int, ...], start: int, b: float) -> torch.Tensor:
    """log p of what is scored of one sequence."""
    logits = b * model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    return -torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum")


@contextmanager
def changed(parameter: torch.nn.Parameter, values: torch.Tensor) -> Iterator[None]:
    """A parameter with other values for a while."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(values)
    yield
    with torch.no_grad():
        parameter.copy_(before)


def central(function: Callable[[float], float], step: float = 5e-5) -> float:
    """A derivative at 0, by central differences."""
    return (function(step) - function(-step)) / (2 * step)


def measured_rows(machine: Machine, group: Group, losses: dict[str, float], number: int = 0) -> Any:
    """`Machine.measure` in float64 throughout."""
    with exact():
        return machine.measure(group, losses, number=number, half=0, factor=1.0)


@functools.cache
def probed(model: Path = TINY_MODEL, text: Path = STORIES, **more: Any) -> Probed:
    """A probe of a real model on few short documents; the same object each time."""
    request = {"documents": 8, "max_tokens": 24} | more
    return probe(open_checkpoint(model), FINGERPRINT, ProbeRequest(text=text, **request))


def scale_of(probed: Probed, name: str) -> Any:
    """What was found of the scale of a tensor."""
    return next(tensor.scale for tensor in probed.evidence.tensors if tensor.name == name)


def close(found: np.ndarray | float, true: np.ndarray | float, relative: float) -> bool:
    """Whether the largest difference is small beside the largest number."""
    size = np.abs(true).max()
    return bool(np.abs(np.asarray(found) - true).max() <= relative * size)


def probed_documents() -> list[Group]:
    """The documents of `probed` as it is by default."""
    return text_groups(
        load_source(STORIES).documents,
        load_tokenizer(TINY_MODEL),
        context=256,
        max_tokens=24,
        most=8,
        groups=256,
        seed=0,
    )
