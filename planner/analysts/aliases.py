"""How a model is told of tensors: by names that only their structure made, or by an alias.

A checkpoint is a stranger's file, and a tensor's name may be a sentence. A name that the family's declaration spells,
or that is made of nothing but the usual words for modules, is shown as it is. Any other is called `t0001` and so on,
after its place in the checkpoint, and shown once, quoted, as data. The table stays here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property

from planner.architecture import ModelMap

__all__ = ["Aliases", "quoted"]

_USUAL = """
model transformer language_model text_model decoder encoder backbone base_model module layers layer h blocks
block stack gpt_neox weight bias self_attn attn attention self_attention cross_attn mlp ffn feed_forward moe
block_sparse_moe experts expert shared_expert shared_experts router gate gate_proj up_proj down_proj
gate_up_proj q_proj k_proj v_proj o_proj qkv_proj out_proj in_proj c_attn c_proj c_fc q_norm k_norm query key
value dense query_key_value dense_h_to_4h dense_4h_to_h fc1 fc2 fc_in fc_out w1 w2 w3 wq wk wv wo Wqkv wte wpe
embed_tokens embed_in embed_out embed_positions word_embeddings word_embeddings_layernorm embeddings embedding
lm_head head output score norm norm1 norm2 norm_f ln_1 ln_2 ln_f ln_attn ln_mlp input_layernorm
post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm final_layernorm final_layer_norm
self_attn_layer_norm layernorm layer_norm attention_norm ffn_norm rotary_emb inv_freq mixer conv1d dt_proj
x_proj A_log D q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj q_a_layernorm kv_a_layernorm
e_score_correction_bias sinks
"""
_WORDS = frozenset(_USUAL.split())
_BRACES = re.compile(r"[{}]")
_LONGEST = 64
_SHORTEST = 8


def quoted(text: str, *, longest: int = _LONGEST) -> str:
    """Somebody's text as a JSON string: plain ASCII characters only, everything else left out, at most `longest`."""
    plain = "".join(c for c in text[: 16 * longest] if c.isascii() and c.isprintable())
    return json.dumps(plain if len(plain) <= longest else plain[: longest - 3] + "...")


class Aliases:
    """The names of one checkpoint as a model sees them."""

    def __init__(self, names: Iterable[str], model: ModelMap) -> None:
        self._real: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        for place, name in enumerate(names):
            shown = name if name in model.parameters or _usual(name) else f"t{place:04d}"
            self._shown[name] = shown
            self._real[shown] = name

    def shown(self, name: str) -> str:
        """What a tensor of the checkpoint is called before a model; of no tensor, the quoted text."""
        return self._shown.get(name) or quoted(name)

    def real(self, shown: str) -> str:
        """The tensor that an alias means; any other text unchanged, a pattern for example."""
        return self._real.get(shown, shown)

    def target(self, shown: str) -> str:
        """The same for a target, where a name with braces would mean other tensors: it then stays as it is."""
        real = self.real(shown)
        return shown if real != shown and _BRACES.search(real) else real

    @cached_property
    def hidden(self) -> dict[str, str]:
        """Alias by real name, of those that have one."""
        return {name: shown for name, shown in self._shown.items() if name != shown}

    def cleaned(self, text: str) -> str:
        """A text of ours that may name tensors, fit for a model: aliases for names, plain characters only."""
        # The longest first: one name may be part of another.
        for name in sorted(self.hidden, key=len, reverse=True):
            if len(name) >= _SHORTEST:  # a shorter one says nothing, and would be found inside other words
                text = text.replace(name, self.hidden[name])
        return "".join(c for c in text if (c.isascii() and c.isprintable()) or c == "\n")


def _usual(name: str) -> bool:
    parts = name.split(".")
    return 0 < len(parts) <= 12 and all(part in _WORDS or (part.isdigit() and len(part) < 7) for part in parts)
