"""What the planner itself adds to a conversation with a language model: `make bench-analyst`.

The checkpoint is that of bench_apply: 311 tensors in the shape of Qwen3-0.6B. The model is a scripted one that answers
at once: it looks at eight things in six steps, answers with something wrong, and mends it. What is timed is everything
but the client, with every exchange recorded and the transcript encoded as a file is. Beside it, the first question: how
many tokens by the estimate, and by two real vocabularies where litellm brings them along.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_apply import build

from planner.analysts import Asking, Brief, LLMAnalyst
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.effects import check
from planner.llm import Reply, ScriptedClient, ToolCall, Usage
from planner.llm.tokens import estimated_tokens
from planner.plan import Policy
from planner.profile import histograms_of, profile_of

ROUNDS = 7
UP = "model.layers.7.mlp.up_proj.weight"
DRAFT = {"target": {"roles": ["down_proj"], "layers": "5-9"}, "operation": {"kind": "scale", "factor": 1.02}}


def main() -> None:
    """Build the checkpoint and converse."""
    with tempfile.TemporaryDirectory(prefix="planner-bench-") as name:
        os.environ["PLANNER_CACHE"] = str(Path(name) / "cache")
        print("building 1.5 GB and profiling it", flush=True)
        brief = brief_of(build(Path(name) / "model"))
        print(f"{len(brief.profile.tensors)} tensors; {os.cpu_count()} cores; {ROUNDS} rounds, medians\n")
        conversation(brief)
        one_shot(brief)
        question(brief)


def brief_of(folder: Path) -> Brief:
    """What `planner propose` gives an analyst."""
    checkpoint, policy = open_checkpoint(folder), Policy()
    profile = profile_of(checkpoint)
    kept = histograms_of(profile)
    model = map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    return Brief(
        goal="fewer repetitions",
        profile=profile,
        policy=policy,
        check=lambda plan: check(plan, checkpoint, profile, policy, histograms=kept, model=model),
        checkpoint=checkpoint,
        model=model,
        histograms=kept,
    )


def conversation(brief: Brief) -> None:
    """Six steps with eight calls, a wrong answer and a good one."""
    looks = [
        [("tensor_statistics", {"tensors": [UP]}), ("compare_layers", {"role": "down_proj", "statistic": "rms"})],
        [("list_tensors", {"pattern": None, "role": "q_proj", "layers": None, "sort_by": "kurtosis", "most": 20})],
        [("histogram", {"tensor": UP, "bins": 20})],
        [("preview_modification", {"modification": json.dumps(DRAFT)})],
        [("check_plan", {"modifications": [json.dumps(DRAFT)]}), ("describe_operation", {"kind": "head_scale"})],
        [("tensor_statistics", {"tensors": ["model.norm.weight"]})],
    ]
    script = [*(calls(step) for step in looks), answer(brief, cited=7.0), answer(brief)]
    times, requests = measured(brief, script, Asking())
    report("a conversation", times, requests)


def one_shot(brief: Brief) -> None:
    """One question, one answer."""
    times, requests = measured(brief, [answer(brief)], Asking(tools=False))
    report("one shot", times, requests)


def measured(brief: Brief, script: list[Any], asking: Asking) -> tuple[list[float], int]:
    """Seconds of each round, and requests in one."""
    times = []
    for round_ in range(ROUNDS + 1):
        client = ScriptedClient(script)
        began = time.perf_counter()
        analyst = LLMAnalyst(client, asking)
        analyst.propose(brief)
        assert analyst.transcript
        analyst.transcript.encoded(())
        if round_:  # the first one loads the templates
            times.append(time.perf_counter() - began)
    return times, len(script)


def report(what: str, times: list[float], requests: int) -> None:
    """The median, whole and for each request."""
    whole = statistics.median(times)
    each = whole / requests
    verdict = "within" if each < 0.05 else "ABOVE"
    print(f"{what:<15} {requests} requests: {1000 * whole:6.1f} ms, {1000 * each:5.1f} ms a request ({verdict} 50 ms)")


def question(brief: Brief) -> None:
    """How long the first question is."""
    client = ScriptedClient([answer(brief)])
    LLMAnalyst(client, Asking(tools=False)).propose(brief)
    text = "\n".join(message.content for message in client.requests[0].messages)
    counts = [f"{estimated_tokens(text):,} by the estimate"]
    counts += [f"{count(text):,} by {name}" for name, count in vocabularies().items()]
    print(f"\nfirst question   {len(text):,} characters: {', '.join(counts)}")


def vocabularies() -> dict[str, Callable[[str], int]]:
    """Two real ones, where litellm is installed."""
    try:
        from importlib.util import find_spec

        from tokenizers import Tokenizer

        found = find_spec("litellm")
        if found is None or found.origin is None:
            return {}
        folder = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        import tiktoken

        openai = tiktoken.get_encoding("cl100k_base")
        anthropic = Tokenizer.from_file(str(folder / "anthropic_tokenizer.json"))
    except ImportError:
        return {}
    return {
        "cl100k_base": lambda text: len(openai.encode(text)),
        "Anthropic's vocabulary": lambda text: len(anthropic.encode(text).ids),
    }


def calls(wanted: list[tuple[str, dict[str, Any]]]) -> Reply:
    """A reply that calls tools."""
    made = tuple(
        ToolCall(id=f"call-{number}", name=name, arguments=json.dumps(arguments))
        for number, (name, arguments) in enumerate(wanted)
    )
    usage = Usage(input_tokens=0, output_tokens=0, cost_usd=None)
    return Reply(text="", tool_calls=made, model="scripted", finish_reason="tool_calls", usage=usage, attempts=1)


def answer(brief: Brief, *, cited: float | None = None) -> str:
    """A plan of ten modifications."""
    std = cited or brief.profile.by_name[UP].std
    modifications = [
        {
            "id": f"m{layer:02d}",
            "target": {"tensors": [f"model.layers.{layer}.mlp.down_proj.weight"]},
            "operation": {"kind": "scale", "factor": 1.02},
            "reasoning": "a reason that is about as long as such reasons are, with a number or two in it",
            "confidence": 0.3,
            "expected_impact": "a lower loss",
            "evidence": [{"tensor": UP, "fact": "std", "value": std}],
        }
        for layer in range(10)
    ]
    return json.dumps({"note": "ten small steps", "modifications": modifications})


if __name__ == "__main__":
    main()
