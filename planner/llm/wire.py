"""A `Request` in the form of OpenAI's chat completions, which every endpoint here speaks."""

from __future__ import annotations

from typing import Any

from planner.llm.base import AnswerShape, Message, Request, Tool

__all__ = ["chat_body"]


def chat_body(request: Request) -> dict[str, Any]:
    """What to send, without the model's name and the limit of tokens, whose names differ between endpoints.

    A shape on the rung `tool` becomes a tool of its own. Alone it must be called; beside other tools one of them all
    must be, else the model could not look anything up before it answers.
    """
    body: dict[str, Any] = {"messages": [_message(message) for message in request.messages]}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.seed is not None:
        body["seed"] = request.seed
    tools = [_tool(tool) for tool in request.tools]
    shape = request.shape
    if shape is not None and request.rung == "json_schema":
        schema = {"name": shape.name, "strict": True, "schema": shape.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif shape is not None and request.rung == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif shape is not None and request.rung == "tool":
        body["tool_choice"] = "required" if tools else {"type": "function", "function": {"name": shape.name}}
        tools.append(_answer_tool(shape))
    if tools:
        body["tools"] = tools
    return body


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # OpenAI's form; some servers refuse "" beside calls.
        sent["content"] = message.content or None
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _answer_tool(shape: AnswerShape) -> dict[str, Any]:
    function = {"name": shape.name, "description": "Give the final answer.", "parameters": shape.json_schema}
    return {"type": "function", "function": function}
