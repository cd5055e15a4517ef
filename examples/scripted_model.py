"""A script that plays the language model, so that the analyst can be seen at work without a key and without a network.

It speaks OpenAI's chat completions on this machine, looks at two things when it is offered tools, answers with a plan
that has two faults, and mends it when it is told. It knows nothing about weights: it takes the row that the prompt
lists first, and cites what stands there. Run it by itself and point `--base-url` at what it prints:

    python examples/scripted_model.py
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ROW = re.compile(r"^  (\S+) probe\.row\.(\d+) (\S+) \(", re.MULTILINE)
"""The first row in the prompt's list of those that can win most, and its sensitivity; there where there is evidence."""
_SERIES = re.compile(r"^- (\w+) rms: (\S+)", re.MULTILINE)
"""Without: a role, and the rms of it in the first layer."""


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """The address of the endpoint, which answers as long as the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def said(messages: list[dict[str, Any]], tools: list[str]) -> dict[str, Any]:
    """The next message of the model."""
    task = messages[1]["content"]
    if tools and not any(message["role"] == "tool" for message in messages):
        draft = json.dumps({"target": {"roles": ["q_proj"]}, "operation": {"kind": "scale", "factor": 1.05}})
        wanted = [("preview_modification", {"modification": draft})]
        if "sensitivities" in tools:
            wanted.insert(0, ("sensitivities", {"by": "scale", "role": None, "most": 3}))
        return {
            "content": "I would like to see what matters, and what scaling q_proj does.",
            "tool_calls": calls(wanted),
        }
    if tools:
        return {"content": "I have seen enough."}
    mended = any("cannot be used" in str(message["content"]) for message in messages[2:])
    return {"content": json.dumps(plan(task, mended=mended), indent=1)}


def calls(wanted: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form."""
    return [
        {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(wanted)
    ]


def plan(task: str, *, mended: bool) -> dict[str, Any]:
    """A small step where the prompt says that it helps; at first beside a scale that cancels and an invented number."""
    if row := _ROW.search(task):
        tensor, fact, value = row[1], f"probe.row.{row[2]}", float(row[3])
        elements, factor = {"kind": "rows", "indices": row[2]}, 0.8 if value > 0 else 1.25
        why = "a step against its sign lowers the loss at first order"
    else:
        series = _SERIES.search(task)
        assert series, "the prompt holds statistics at least"
        pattern = re.search(rf"^- {series[1]}: (\S+)", task, re.MULTILINE)
        assert pattern, "and the names of the role's tensors"
        tensor = re.sub(r"\{(\d+)-\d+\}", r"\1", pattern[1])
        fact, value, elements, factor = "rms", float(series[2]), None, 0.98
        why = "it was shown first, which is no reason; a script does not know better"
    good = {
        "id": "m01",
        "target": {"tensors": [tensor], "elements": elements},
        "operation": {"kind": "scale", "factor": factor},
        "reasoning": f"{fact} of {tensor} is {value:.4g}: {why}",
        "confidence": 0.55,
        "expected_impact": "a slightly lower calibrated loss on the goal text",
        "evidence": [{"tensor": tensor, "fact": fact, "value": value}],
    }
    if mended:
        return {"note": "one step, where most was measured", "modifications": [good]}
    cancels = good | {"id": "m02", "target": {"roles": ["q_proj"], "layers": "1"}}
    invented = good | {"id": "m03", "evidence": [{"tensor": tensor, "fact": "std", "value": 0.5}]}
    return {"note": "three steps", "modifications": [good, cancels, invented]}


class _Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tools = [tool["function"]["name"] for tool in asked.get("tools", ())]
        message = {"role": "assistant", **said(asked["messages"], tools)}
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        usage = {"prompt_tokens": len(json.dumps(asked)) // 4, "completion_tokens": len(json.dumps(message)) // 4}
        answer = {
            "id": "scripted",
            "object": "chat.completion",
            "model": "a-script",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage,
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


if __name__ == "__main__":
    with serving(8765) as address:
        print(f"--llm scripted --base-url {address}    (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
