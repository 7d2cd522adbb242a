"""The tools of POST /v1/responses, which lie one level higher than those of a chat."""

from typing import Any

from runtime.engine.request import RequestError
from runtime.server.refused import unsupported
from runtime.server.responses_schema import ResponseBody
from runtime.server.tool_calls import ToolFields, ToolUse, tool_use_of
from runtime.service import GenerationService


async def tools_of_response(
    service: GenerationService, body: ResponseBody, *, is_constrained: bool
) -> ToolUse:
    """See `tool_use_of`; RequestError for tools that are no functions of the client's own."""
    fields = ToolFields(
        tools=_functions(body.tools),
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
    )
    try:
        tools = await tool_use_of(service, fields)
    except RequestError as error:
        message = str(error).replace(".function.", ".")
        raise RequestError(message, error.param, error.code) from error
    if is_constrained and tools.offer is not None:
        raise RequestError(
            "tools and a constraint cannot both hold; set tool_choice to 'none'", "tools"
        )
    return tools


def _functions(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools
    return [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _function(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
    if kind != "function":
        raise unsupported(f"{where} is a '{str(kind)[:40]}'; only functions are offered", "tools")
    return {
        "type": "function",
        "function": {key: value for key, value in tool.items() if key != "type"},
    }


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise unsupported(
            "tool_choice must be 'none', 'auto', 'required' or name a function", "tool_choice"
        )
    return {"type": "function", "function": {"name": choice.get("name")}}
