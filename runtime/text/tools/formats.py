"""How families of models write tool calls, told from their chat template as llama.cpp tells it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolFormat:
    """Calls stand between `begin` and `end`; either may be empty. Without `begin`, an answer that
    begins with a JSON object is a call.

    as_list: one JSON list holds all calls; otherwise each has its own marks, or without marks they
    are parted by `between`. arguments_key: what the arguments are called beside "name".
    name_mark: the name stands before this mark, and the JSON after it is the arguments alone.
    in_template: the template tells the model of the tools; otherwise a system message does.
    short_ids: the template takes ids of nine letters and digits only.
    """

    name: str
    begin: str = ""
    end: str = ""
    as_list: bool = False
    between: str = ""
    arguments_key: str = "arguments"
    name_mark: str = ""
    lead: str = ""
    """Text that may come before a call without marks."""
    in_template: bool = True
    short_ids: bool = False
    may_name: bool = False
    """Calls may also be written with `name_mark`, whatever the template says."""

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self.begin, self.end, self.name_mark, self.lead) if mark)


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA = ToolFormat("llama", between="; ", arguments_key="parameters", lead="<|python_tag|>")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", as_list=True, short_ids=True, may_name=True)
MISTRAL_NAMED = ToolFormat(
    "mistral-named", "[TOOL_CALLS]", name_mark="[ARGS]", short_ids=True, may_name=True
)
PHI = ToolFormat("phi", "<|tool_call|>", "<|/tool_call|>", as_list=True)
GENERIC = ToolFormat("generic", "<tool_call>", "</tool_call>", in_template=False)

_USES_TOOLS = re.compile(r"\btools\b")


def format_of(template: str) -> ToolFormat:
    """The format of the model whose chat template this is; GENERIC where it knows no tools."""
    if not _USES_TOOLS.search(template):
        return GENERIC
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "<|tool_call|>" in template or "<|tool|>" in template:
        return PHI
    if "<|python_tag|>" in template or "Environment: ipython" in template:
        return LLAMA
    return GENERIC
