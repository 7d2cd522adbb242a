import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quant.format.errors import FileFormatError
from runtime.engine.request import RequestError
from runtime.text.template import ChatTemplate, content_text, load_template, render_pool
from tests.runtime.text.gguf_keys import byte_level_keys, text_model
from tests.tiny import CHAT_TEMPLATE, write_tokenizer

TALK = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Café?\n"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "日本語 '\"\\"},
]
TEMPLATES = {
    "tiny": CHAT_TEMPLATE,
    "trimmed blocks": (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' -%}\n  [INST] "
        "{{ m.content | trim }} [/INST]\n  {% else %}\n{{ m['content'] }}{{ eos_token }}\n"
        "  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}>>{% endif %}\n"
    ),
    "json": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ loop.index0 }}:{{ m.role }};{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length"
        " %}{% endfor %}{{ ns.n }} {{ '%s!' % 'a' }} {{ 'ab' * 3 }} {{ range(3) | list }}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "variables": "{% if enable_thinking is defined and not enable_thinking %}quick{% endif %}.",
    "macros": (
        "{% macro say(x) %}<{{ x }}>{% endmacro %}"
        "{% for k, v in messages[0].items() %}{{ say(k) }}{{ say(v) }}{% endfor %}"
    ),
}


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_text_is_that_of_transformers(name: str, prompt: bool, transformers_tokenizer: Any) -> None:
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    ours = ChatTemplate(TEMPLATES[name], tokens).render(
        TALK, add_generation_prompt=prompt, variables={"enable_thinking": False}
    )
    theirs = transformers_tokenizer.apply_chat_template(
        TALK,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=prompt,
        enable_thinking=False,
    )
    assert ours == theirs


def test_time_is_given_in_the_pattern_asked_for() -> None:
    text = ChatTemplate("{{ strftime_now('%Y') }}").render(TALK)
    assert text.isdecimal() and len(text) == 4


def test_content_in_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render([{"role": "user", "content": parts}]) == "a\nb"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}},
        {"type": "input_audio"},
        {"type": "text"},
        "text",
        7,
    ],
)
def test_parts_that_are_not_text_are_refused(part: object) -> None:
    with pytest.raises(RequestError, match="only text parts are supported"):
        content_text([part])


def test_content_of_another_kind_is_refused() -> None:
    with pytest.raises(RequestError, match="a string or a list"):
        ChatTemplate("x").render([{"role": "user", "content": 5}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only users') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 10 ** 100000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ range(1000000000) | list }}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% for a in range(2000) %}{{ 'x' * 16000 }}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].content + messages }}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_of_bad_will_end_in_an_error_soon(source: str) -> None:
    with pytest.raises(RequestError, match="the chat template refuses these messages") as caught:
        ChatTemplate(source).render(TALK)
    assert len(str(caught.value)) < 400


def test_a_template_that_does_not_parse_names_its_file() -> None:
    with pytest.raises(FileFormatError, match=r"mine\.jinja: the chat template does not parse"):
        ChatTemplate("{% for %}", name="mine.jinja")


def test_where_a_template_is_found(tmp_path: Path) -> None:
    expected = ChatTemplate(CHAT_TEMPLATE).render(TALK)
    from_gguf = load_template(text_model(keys=byte_level_keys()))
    assert from_gguf is not None and from_gguf.render(TALK) == expected
    assert load_template(text_model(tmp_path)) is None
    write_tokenizer(tmp_path)
    from_config = load_template(text_model(tmp_path))
    assert from_config is not None and from_config.render(TALK) == expected
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    from_file = load_template(text_model(tmp_path))
    assert from_file is not None and from_file.render(TALK) == "<|im_start|>"


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = load_template(text_model(tmp_path))
    assert template is not None and template.render(TALK) == "D"


@pytest.mark.parametrize("name", ["tiny", "trimmed blocks"])
@pytest.mark.parametrize("last", ["The press", " The press ", "The\npress\n"])
def test_a_final_message_is_continued_as_transformers_does(
    name: str, last: str, transformers_tokenizer: Any
) -> None:
    talk = [*TALK, {"role": "assistant", "content": last}]
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    ours = ChatTemplate(TEMPLATES[name], tokens).render(talk, continue_final=True)
    theirs = transformers_tokenizer.apply_chat_template(
        talk, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True, **tokens
    )
    assert ours == theirs


def test_a_final_message_that_is_not_shown_cannot_be_continued() -> None:
    for content in ("", "unseen"):
        with pytest.raises(RequestError, match="continue_final_message"):
            talk = [{"role": "user", "content": content}]
            ChatTemplate("fixed").render(talk, continue_final=True)


def test_many_render_at_once_whichever_process_parsed() -> None:
    templates = [ChatTemplate(f"{index}{{{{ messages[0].content }}}}") for index in range(3)]
    render_pool().close()
    with ThreadPoolExecutor(12) as threads:
        found = [
            threads.submit(templates[index % 3].render, [{"role": "user", "content": str(index)}])
            for index in range(24)
        ]
        assert [one.result() for one in found] == [f"{index % 3}{index}" for index in range(24)]
