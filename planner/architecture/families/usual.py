"""What most families share: the names that Llama made usual, and sizes from the usual keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Experts, GatedMlp, Layer, Norm, Projection

__all__ = [
    "activation",
    "agreed",
    "attention",
    "capped",
    "decoder",
    "even_width",
    "experts",
    "gated_mlp",
    "head_width",
    "layer_norm",
    "rotated",
    "wholly_rotated",
]

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


def activation(config: Config, *keys: str, default: str) -> str:
    """The activation by a name that the effects know; an unknown name is passed on and treated as any curve."""
    name = config.text(*keys, default=default)
    return _ACTIVATIONS.get(name, name)


def head_width(config: Config) -> int:
    """Channels of a head: `head_dim`, else the hidden size divided among the heads."""
    if config.has("head_dim"):
        return config.count("head_dim")
    return config.count("hidden_size") // config.count("num_attention_heads")


def even_width(config: Config, hidden: int, heads: int) -> int:
    """Channels of a head where the family's code has no key for it: the hidden size divided among the heads."""
    width = hidden // heads
    if width * heads != hidden or (config.has("head_dim") and config.count("head_dim") != width):
        raise Unreadable(f"{hidden} channels are not {heads} heads of equal size")
    return width


def agreed(config: Config, *keys: str, default: int | None = None) -> int:
    """A count that has several names; where more than one is given, they must say the same."""
    given = {config.count(key) for key in keys if config.has(key)}
    if len(given) > 1:
        raise Unreadable(f"{' and '.join(keys)} disagree")
    return given.pop() if given else config.count(*keys, default=default)


def rotated(width: int, part: float) -> int:
    """How many of a head's channels are rotated, as transformers counts: the product, rounded down."""
    if not 0 <= part <= 1:
        raise Unreadable("the rotated part of a head is not between 0 and 1")
    return int(width * part)


def wholly_rotated(config: Config) -> None:
    """Raise `Unreadable` where the configuration has only a part of a head rotated, in a family that rotates it all."""
    rope = config.part("rope_parameters")
    kinds = [Config({"rope_parameters": part}) for part in rope.raw.values() if isinstance(part, dict)]
    if any(place.rotary_part() != 1 for place in (config, *kinds)):
        raise Unreadable("only a part of each head is rotated, which the family does not know")


def capped(config: Config, key: str) -> bool:
    """Whether the key gives a cap c of c · tanh(x / c); null and absent are none."""
    if config.has(key) and not config.number(key) > 0:
        raise Unreadable(f"{key} is not above zero")
    return config.has(key)


def layer_norm(name: str, *, bias: bool = True, one_plus: bool = False) -> Norm:
    """A LayerNorm: the mean taken out, and usually a bias."""
    return Norm(name, kind="layer", bias=bias, one_plus=one_plus)


def attention(
    config: Config,
    *,
    bias: bool = False,
    bias_flag: str | None = None,
    output_bias: bool | None = None,
    output_flag: str | None = None,
    rotary: float | None = None,
    query_norm: Norm | None = None,
    key_norm: Norm | None = None,
) -> Attention:
    """q_proj, k_proj, v_proj and o_proj under `self_attn`. `output_bias` None: the output has one if the others do.

    `output_flag`: the key that decides about the bias of the output, where it is another than `bias_flag`.
    `rotary`: the part of a head that is rotated; None: all of it, and the configuration may not ask for less.
    """
    if rotary is None:
        wholly_rotated(config)
    width = head_width(config)
    heads = config.count("num_attention_heads")
    wide = Projection("", bias=bias, bias_flag=bias_flag)
    out = replace(wide, bias=bias if output_bias is None else output_bias)
    if output_bias is not None:
        out = replace(out, bias_flag=output_flag)
    return Attention(
        heads=heads,
        key_value_heads=config.count("num_key_value_heads", default=heads),
        width=width,
        query=replace(wide, name="self_attn.q_proj"),
        key=replace(wide, name="self_attn.k_proj"),
        value=replace(wide, name="self_attn.v_proj"),
        output=replace(out, name="self_attn.o_proj"),
        query_norm=query_norm,
        key_norm=key_norm,
        rotary=rotated(width, 1.0 if rotary is None else rotary),
    )


def gated_mlp(
    config: Config,
    *,
    bias: bool = False,
    bias_flag: str | None = None,
    default: str = "silu",
    prefix: str = "mlp.",
    width: int | None = None,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    activation_key: str = "hidden_act",
) -> GatedMlp:
    """Gate, up and down, by these names under `prefix`."""

    def projection(name: str) -> Projection:
        return Projection(prefix + name, bias=bias, bias_flag=bias_flag)

    return GatedMlp(
        width=width or config.count("intermediate_size"),
        gate=projection(names[0]),
        up=projection(names[1]),
        down=projection(names[2]),
        activation=activation(config, activation_key, default=default),
    )


def experts(
    config: Config,
    count: int,
    expert: GatedMlp,
    *,
    router: str = "mlp.gate",
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    renormalized: bool,
) -> Experts:
    """`count` experts, `num_experts_per_tok` of which a token is sent to."""
    top = config.count("num_experts_per_tok")
    if top > count:
        raise Unreadable(f"a token cannot be sent to {top} of {count} experts")
    return Experts(
        count=count, top=top, router=Projection(router), scoring=scoring, renormalized=renormalized, expert=expert
    )


def decoder(
    config: Config,
    layer: Callable[[int], Layer],
    *,
    final_norm: Norm | None = None,
    tied: bool = False,
    softcap: bool = False,
    head_bias: bool = False,
    unread: tuple[str, ...] = ("*rotary_emb.inv_freq",),
    read_elsewhere: tuple[str, ...] = (),
) -> Decoder:
    """embed_tokens, layers.N, norm under `model.`; lm_head. `tied` is what an absent `tie_word_embeddings` means."""
    return Decoder(
        width=config.count("hidden_size"),
        vocabulary=config.count("vocab_size"),
        embedding="embed_tokens",
        layers=config.count("num_hidden_layers"),
        layer=layer,
        blocks="layers.{layer}",
        final_norm=final_norm or Norm("norm"),
        head=Projection("lm_head", bias=head_bias),
        tied=config.flag("tie_word_embeddings", default=tied),
        softcap=softcap,
        unread=unread,
        read_elsewhere=read_elsewhere,
    )
