"""How long a model is asked to think, in the words of its chat template."""

from typing import Any

from runtime.server.refused import unsupported
from runtime.service import GenerationService
from runtime.text.reasoning import has_reasoning


def effort_variables(service: GenerationService, effort: str | None, field: str) -> dict[str, Any]:
    """The template's variables for `effort`, such as "low"; none for "medium", which is what there
    is without it. RequestError naming the field where the template knows no such thing."""
    source = "" if service.template is None else service.template.source
    if effort is None:
        return {}
    if "reasoning_effort" in source:
        return {"reasoning_effort": effort}
    if effort == "none" and "enable_thinking" in source:
        return {"enable_thinking": False}
    if effort == "medium" or (effort == "none" and not has_reasoning(source)):
        return {}
    raise unsupported(
        f"the chat template of '{service.model_name}' knows no effort of '{effort}'; leave "
        f"'{field}' out",
        field,
    )
