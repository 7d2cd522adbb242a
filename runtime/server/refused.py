"""Fields that are refused by name, since they would be dropped silently.

Keys that nobody here knows are accepted, since clients send many that change nothing. These are
known from OpenAI's interface and from other servers, and ask for what would be missing.
"""

from collections.abc import Container
from typing import Any

from runtime.engine.request import RequestError

_NO_LIST: tuple[Any, ...] = (None, [])
_NO_OBJECT: tuple[Any, ...] = (None, {})
_NO_TEXT: tuple[Any, ...] = (None, "")
_OFF: tuple[Any, ...] = (None, False)
_ZERO: tuple[Any, ...] = (None, 0, 0.0)
_ONE: tuple[Any, ...] = (None, 1, 1.0)
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": _NO_LIST,
    "tool_choice": (None, "none", "auto"),
    "max_tool_calls": (None,),
    "functions": _NO_LIST,
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": _NO_OBJECT,
    "structural_tag": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_decoding_backend": (None,),
    "guided_whitespace_pattern": (None,),
    "grammar": _NO_TEXT,
    "ebnf": _NO_TEXT,
    "json_schema": _NO_OBJECT,
    "regex": (None,),
    "best_of": (None, 1),
    "suffix": _NO_TEXT,
    "echo": _OFF,
    "logprobs": _OFF,
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "n_probs": (None, 0),
    "use_beam_search": _OFF,
    "bad_words": _NO_LIST,
    "allowed_token_ids": _NO_LIST,
    "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": _OFF,
    "no_stop_trim": _OFF,
    "stop_regex": (None, "", []),
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "return_hidden_states": _OFF,
    "timings_per_token": _OFF,
    "logits_processors": _NO_LIST,
    "custom_logit_processor": (None,),
    "max_tokens": (None,),
    "max_completion_tokens": (None,),
    "max_output_tokens": (None,),
    "n_predict": (None, -1),
    "repeat_penalty": _ONE,
    "typical_p": _ONE,
    "typ_p": _ONE,
    "tfs_z": _ONE,
    "top_a": _ZERO,
    "top_n_sigma": (None, -1, -1.0),
    "mirostat": (None, 0),
    "dry_multiplier": _ZERO,
    "xtc_probability": _ZERO,
    "dynatemp_range": _ZERO,
    "no_repeat_ngram_size": (None, 0),
    "chat_template": (None,),
    "add_special_tokens": _OFF,
    "add_generation_prompt": (None, True),
    "continue_final_message": _OFF,
    "reasoning_effort": (None,),
    "include_reasoning": (None, True),
    "thinking_token_budget": (None,),
    "verbosity": (None, "medium"),
    "documents": _NO_LIST,
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "prompt": (None,),
    "prompt_embeds": (None,),
    "dimensions": (None,),
    "lora": _NO_LIST,
    "lora_path": _NO_TEXT,
    "adapter_id": _NO_TEXT,
    "priority": (None, 0),
    "cache_salt": _NO_TEXT,
    "queue_timeout_seconds": (None,),
    "timeout_seconds": (None,),
    "service_tier": (None, "auto", "default"),
    "stream": _OFF,
    "store": _OFF,
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": _OFF,
    "include": _NO_LIST,
    "text": (None, {}, {"format": {"type": "text"}}),
}
"""Each with the values that ask for nothing. A body that declares one of them honours it."""
_INSTEAD = {
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_tokens", "max_output_tokens"),
    "max_output_tokens": ("max_completion_tokens", "max_tokens"),
    "n_predict": ("max_tokens", "max_output_tokens"),
    "repeat_penalty": ("repetition_penalty",),
    "n_probs": ("top_logprobs", "logprobs"),
    "ebnf": ("grammar",),
    "functions": ("tools",),
    "function_call": ("tool_choice",),
    "reasoning_effort": ("reasoning",),
}
"""Names under which some routes honour the same."""


def refuse_unsupported(fields: dict[str, Any], honoured: Container[str]) -> None:
    """RequestError naming the first field that asks for what would not be done."""
    for name, neutral in REFUSED.items():
        if name in honoured or name not in fields:
            continue
        if not any(_same(fields[name], value) for value in neutral):
            instead = next((one for one in _INSTEAD.get(name, ()) if one in honoured), None)
            fix = f"use '{instead}'" if instead else "leave it out"
            raise unsupported(f"'{name}' is not supported here; {fix}", name)


def unsupported(message: str, field: str) -> RequestError:
    return RequestError(message, field, "unsupported_field")


def _same(value: object, neutral: object) -> bool:
    return type(value) is type(neutral) and value == neutral
