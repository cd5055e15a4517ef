"""A conversation with a language model as one page that anyone can read: what was sent, what came back, what was wrong.

Everything in it is a stranger's text: the model's, the provider's, the checkpoint's. The page has no script, loads
nothing, links to nothing but itself, and prints whatever it prints through one filter that leaves no control or
direction-changing character.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from planner import strict_json
from planner.report.transcript_steps import answers_of, opening_of, steps_of
from planner.report.transcript_text import Block, block, harmless, line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.analysts.transcript import Transcript
    from planner.llm import Reply, Tool
    from planner.records import Record

__all__ = ["is_transcript", "render_transcript"]

_LARGEST = 2**29
_KIND = "planner/transcript@"
_BEGINS = re.compile(r'\s*\{\s*"schema"\s*:\s*"' + re.escape(_KIND))
_STYLES = ("page.css", "transcript.css")
_USE = {"native": "the provider's own calls", "protocol": "calls written as JSON", "none": "none"}


def is_transcript(text: str) -> bool:
    """Whether a file says that it is a transcript, of any version; also where it was cut short or is not sound JSON."""
    if _KIND not in text:  # a profile of 60 MB is not parsed for this
        return False
    try:
        document = strict_json.loads(text, largest=_LARGEST)
    except strict_json.JsonRefused:
        return bool(_BEGINS.match(text))
    schema = document.get("schema") if isinstance(document, dict) else None
    return isinstance(schema, str) and schema.startswith(_KIND)


def render_transcript(transcript: Transcript) -> str:
    """The page as HTML. The same transcript gives the same page, byte for byte."""
    style = "\n".join(map(_asset, _STYLES))
    digest = base64.b64encode(hashlib.sha256(f"\n{style}\n".encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printed
    )
    tools, shapes = _offered(transcript)
    return environment.from_string(_asset("transcript.html")).render(
        model=line(transcript.model) or "a model without a name",
        goal=block(transcript.goal),
        checkpoint=line(transcript.checkpoint),
        fingerprint=line(transcript.fingerprint),
        facts=_facts(transcript),
        origins=_origins(transcript),
        settings=_settings(transcript),
        record=block(transcript.record) if transcript.record else None,
        no_plan="" if transcript.outcome == "plan" else line(transcript.outcome) or "it was not finished",
        opening=opening_of(transcript),
        tools=tools,
        shapes=shapes,
        steps=steps_of(transcript),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704 - ours
    )


def _printed(value: Any) -> Any:
    """What the template prints in place of a value; Markup is the template's own."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _asset(name: str) -> str:
    return files("planner.report").joinpath("assets", name).read_text(encoding="utf-8").strip("\n")


def _outcome(transcript: Transcript) -> str:
    if transcript.outcome == "plan":
        return "a plan"
    return f"no plan: {line(transcript.outcome)}" if transcript.outcome else "not finished"


def _facts(transcript: Transcript) -> list[tuple[str, str]]:
    exchanges = transcript.exchanges
    replies = [exchange.reply for exchange in exchanges if exchange.reply is not None]
    asked = [reply for reply in replies if not reply.cached]
    answers = answers_of(transcript)
    refused = sum(not called.ok for exchange in exchanges for called in exchange.called)
    calls = sum(len(exchange.called) for exchange in exchanges)
    # The analyst takes an answer with nothing wrong at once, so only the last one of a plan can be valid.
    valid = bool(answers) and transcript.outcome == "plan" and not exchanges[answers[0]].problems
    return [
        ("outcome", _outcome(transcript)),
        ("began", line(transcript.created).replace("T", " ").replace("Z", " UTC")),
        ("requests", f"{len(exchanges):,}"),
        ("answers kept from earlier runs", f"{len(replies) - len(asked):,}"),
        ("tokens sent, as the provider counted", _total(reply.usage.input_tokens for reply in asked)),
        ("tokens received, as the provider counted", _total(reply.usage.output_tokens for reply in asked)),
        ("cost", _cost(transcript, asked)),
        ("tool calls", f"{calls:,}" + (f", {refused:,} refused" if refused else "")),
        *([("looked until", line(transcript.looked_until))] if transcript.looked_until else []),
        ("rounds: answers read as a plan", f"{len(answers):,}"),
        ("first answer valid", ("yes" if valid else "no") if answers else "there was none"),
    ]


def _origins(transcript: Transcript) -> list[tuple[str, str]]:
    return [
        ("plan", line(transcript.plan)),
        ("evidence", line(transcript.evidence) if transcript.evidence else "none"),
        ("prompt digest", line(transcript.prompt_sha256)),
        ("policy digest", line(transcript.policy_sha256)),
    ]


def _total(counts: Iterable[int]) -> str:
    total = sum(counts)
    return f"{total:,}" if total else "none counted"


def _cost(transcript: Transcript, asked: list[Reply]) -> str:
    """What the provider's list says of each request, else what the user's price makes of the tokens."""
    known = [reply.usage.cost_usd for reply in asked]
    price = transcript.asking.price
    if None not in known:
        return f"${sum(cost for cost in known if cost is not None):.4f}"
    if price is None:
        return "price not known"
    sent, received = (sum(getattr(reply.usage, f"{way}_tokens") for reply in asked) for way in ("input", "output"))
    return f"${(sent * price.input_usd + received * price.output_usd) / 1e6:.4f}"


def _settings(transcript: Transcript) -> list[tuple[str, str, str]]:
    """Name, value and what it means, as the records say it."""
    asking = transcript.asking
    rows = [("tool use", _USE[transcript.tool_use], "How tools could be called at the start.")]
    for record, prefix in ((asking, ""), (asking.limits, "limits: "), (asking.price, "price: ")):
        rows += _rows(record, prefix) if record is not None else []
    return rows


def _rows(record: Record, prefix: str) -> list[tuple[str, str, str]]:
    fields = type(record).model_fields
    plain_values = {name: getattr(record, name) for name in fields if name not in ("limits", "price")}
    return [
        ((prefix + name).replace("_", " "), _value(value), " ".join((fields[name].description or "").split()))
        for name, value in plain_values.items()
    ]


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}" if isinstance(value, float) else line(str(value))


def _offered(transcript: Transcript) -> tuple[list[tuple[str, Block, Block]], list[tuple[str, Block]]]:
    """Every tool and every shape of an answer that some request carried, once."""
    tools: dict[str, Tool] = {}
    shapes: dict[str, str] = {}
    for exchange in transcript.exchanges:
        tools |= {tool.name: tool for tool in exchange.request.tools}
        if exchange.request.shape is not None:
            shapes[exchange.request.shape.name] = _json(exchange.request.shape.json_schema)
    described = [
        (tool.name, block(tool.description), block(_json(tool.parameters), folded=True)) for tool in tools.values()
    ]
    return described, [(name, block(schema, folded=True)) for name, schema in shapes.items()]


def _json(document: object) -> str:
    return json.dumps(document, indent=2)
