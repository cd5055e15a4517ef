"""`planner probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.given import Json, ModelArgument

if TYPE_CHECKING:
    from planner.probes import ProbeRequest


def command(
    model: ModelArgument,
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="Neutral text, on which the model should stay as it is; also the goal.")
    ],
    goal_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text that should become likelier, if it is another one.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text that should become less likely than the goal text.")
    ] = None,
    choices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Questions with choices, instead of a goal text.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the evidence.")] = Path("evidence.json"),
    documents: Annotated[int, typer.Option(min=0, help="At most so many documents of each text; 0 for all.")] = 256,
    groups: Annotated[int, typer.Option(min=2, help="At most so many groups of documents are kept apart.")] = 256,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Cut documents after so many tokens.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens that run through the model at a time.")] = 4096,
    rank: Annotated[int, typer.Option(min=1, max=4, help="Directions of each gradient to keep.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle, the sampled labels and the sketches.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Measure which weights matter for a goal: sensitivities, curvature, drift, what they say in words, the ceiling.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, free_name, profiled
    from planner.cli.probe_table import show_evidence
    from planner.evidence import arrays_path, write_evidence
    from planner.probes import probe
    from planner.profile.store import cache_folder

    screen = Screen(as_json=as_json)
    request = _request(
        out=out,
        text=text,
        goal_text=goal_text,
        against=against,
        choices=choices,
        documents=documents or None,
        groups=groups,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        rank=rank,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    free_name(out)
    free_name(arrays_path(out))
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    with screen.progress("probing", unit="tokens") as bar:
        found = probe(checkpoint, profile.fingerprint, request, cache=cache_folder(), progress=bar.step)
    evidence = write_evidence(out, found.evidence, found.arrays())
    found.discard()
    screen.emit(evidence)
    show_evidence(evidence, screen, every=every)
    screen.say(f"wrote {out} and {evidence.arrays.file}")
    screen.say(f"next: planner propose {model} --goal TEXT --evidence {out}")


def _request(**given: Any) -> ProbeRequest:
    from planner.errors import UsageError
    from planner.probes import ProbeRequest

    if given.pop("out").suffix == ".safetensors":
        raise UsageError("--out names the JSON; the arrays beside it get .safetensors", hint="--out evidence.json")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if given["dtype"] not in dtypes:
        raise UsageError(f"--dtype {given['dtype']!r} is none of {', '.join(dtypes)}", hint="--dtype auto is usual")
    return ProbeRequest(**given)
