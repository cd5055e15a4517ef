"""adapter_config.json of a LoRA adapter: the scaling of each module, and whether adding B·A is all it asks for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import strict_json
from planner.checkpoint import digest_bytes
from planner.checkpoint.header import open_regular, shown
from planner.edits.sidecar import Unsound

__all__ = ["CONFIG", "LoraConfig", "read_lora_config"]

CONFIG = "adapter_config.json"
_LARGEST = 2**20
_MOST_PATTERNS = 10_000
_LARGEST_RANK = 2**16
_PLAIN = re.compile(r"\^?[\w.-]+")

# What changes nothing about weights that are trained and stored.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "runtime_config", "peft_type", "parent_library"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # how a and b began
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "init_lora_weights"),
}
# Why what these ask for cannot be done; any other field that is set is one this version does not know.
_BEYOND = {
    "use_dora": "DoRA also changes the length of each row of the sum",
    "lora_bias": "its biases would have to be added to the model's",
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it replaces rows of the embedding",
    "layer_replication": "it makes a model with more layers",
    "target_parameters": "it changes parameters that are no weight of a linear module",
    "alora_invocation_tokens": "it acts only after certain tokens",
    "ensure_weight_tying": "it shares one change between two modules",
}
# Ways to begin that leave the model's own weights alone. PiSSA, OLoRA, CorDA and LoftQ change them, and the adapter is
# relative to what they changed them to.
_BEGINNINGS = {"gaussian", "eva", "orthogonal"}


@dataclass(frozen=True)
class LoraConfig:
    """What is needed of the configuration to add the adapter to weights."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    """Ranks of the modules that a pattern names; so for `alphas`."""
    alphas: Mapping[str, float]
    fan_in_fan_out: bool
    base_model: str
    """Name of the model that it was made for, as it says; "" where it does not."""
    digest: str

    def rank(self, module: str) -> int:
        """Rank of a module's A and B."""
        return int(_matching(self.ranks, module, self.r))

    def scaling(self, module: str) -> float:
        """What a module's B·A is multiplied by: alpha / r, or alpha / √r (rsLoRA, Kalajdzievski 2023)."""
        rank = self.rank(module)
        return _matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that the module's name ends with, at a dot; one that begins with ^ is the name.

    PEFT takes patterns for regular expressions; plain names, the only ones let in here, mean the same either way.
    """
    for pattern, value in patterns.items():
        if module == pattern.removeprefix("^") or module.endswith("." + pattern):
            return value
    return default


def read_lora_config(path: Path) -> LoraConfig:
    """Read adapter_config.json. Raises `Unsound`."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise Unsound(f"{CONFIG} has more than {_LARGEST:,} bytes")
        config = strict_json.loads(raw.decode("utf-8"))
    except OSError as error:
        raise Unsound(f"{CONFIG}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unsound(f"{CONFIG} is not UTF-8 text") from None
    except strict_json.JsonRefused as error:
        raise Unsound(f"{CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise Unsound(f"{CONFIG} is not a JSON object")
    _refuse_what_a_sum_cannot_do(config)
    base = config.get("base_model_name_or_path")
    return LoraConfig(
        r=_rank(config.get("r", 8), "r"),
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha"),
        rslora=_flag(config, "use_rslora"),
        ranks={key: _rank(value, "rank_pattern") for key, value in _patterns(config, "rank_pattern")},
        alphas={key: _number(value, "alpha_pattern") for key, value in _patterns(config, "alpha_pattern")},
        fan_in_fan_out=_flag(config, "fan_in_fan_out"),
        base_model=base if isinstance(base, str) else "",
        digest=digest_bytes(raw),
    )


def _refuse_what_a_sum_cannot_do(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise Unsound(f"its peft_type is {shown(str(config.get('peft_type')))}; only LORA is a sum of weights")
    if config.get("bias", "none") != "none":
        raise Unsound(f"its bias is {shown(str(config['bias']))}: the model's biases were trained too")
    beginning = config.get("init_lora_weights", True)
    if not (beginning is None or isinstance(beginning, bool) or str(beginning) in _BEGINNINGS):
        raise Unsound(
            f"its init_lora_weights is {shown(str(beginning))}: it may be relative to weights other than the model's;"
            " convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for name, value in config.items():
        if name not in _HARMLESS and value not in (None, False, [], {}, ""):
            why = _BEYOND.get(name, "this version does not know what that means")
            raise Unsound(f"it sets {shown(name)}: {why}")


def _flag(config: dict[str, Any], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise Unsound(f"its {name} is neither true nor false")
    return bool(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unsound(f"its {name} is {shown(str(value))}, no number")
    return float(value)


def _rank(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
        raise Unsound(f"its {name} is {shown(str(value))}, no rank")
    return value


def _patterns(config: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    found = config.get(name) or {}
    if not isinstance(found, dict) or len(found) > _MOST_PATTERNS:
        raise Unsound(f"its {name} is no object of module names")
    for pattern in found:
        if not _PLAIN.fullmatch(pattern):
            raise Unsound(f"its {name} has the regular expression {shown(pattern)}; only names of modules are read")
    return list(found.items())
