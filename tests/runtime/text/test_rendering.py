"""Case L6: templates of bad will, in the process that they are confined to."""

import time
from pathlib import Path

import pytest

from quant.format.errors import FileFormatError
from runtime.confined.pool import Busy
from runtime.engine.request import RequestError
from runtime.text import template as template_module
from runtime.text.template import MAX_TEMPLATE_CHARACTERS, ChatTemplate, render_pool
from tests.runtime.confined.harness import processor_seconds
from tests.waiting import PATIENCE_SECONDS

TALK = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | string | center(10 ** 9) }}",
        "{{ ('a' * 15000000) | urlize | wordwrap(1) | length }}",
        "{{ (range(90000) | list | string * 20) | replace('1', 'x' * 100000) | length }}",
        "{% for a in range(90000) %}{{ (range(90000) | list | sum) or '' }}{% endfor %}",
    ],
)
def test_memory_and_time_are_bounded_from_outside(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError, match="the chat template refuses these messages"):
        ChatTemplate(source).render(TALK)
    assert time.monotonic() - start < PATIENCE_SECONDS / 2
    assert ChatTemplate("{{ messages[0].content }}").render(TALK) == "Hi", "others go on"


@pytest.mark.parametrize("source", ["{{ 'x' | center(10000000000) }}", "{{ " + "(" * 5000])
def test_what_goes_off_while_it_is_parsed_names_its_file(source: str) -> None:
    with pytest.raises((FileFormatError, RequestError), match="template"):
        ChatTemplate(source, name="bad.jinja").render(TALK)


def test_a_template_that_is_too_long_is_refused() -> None:
    with pytest.raises(FileFormatError, match="characters long"):
        ChatTemplate("x" * (MAX_TEMPLATE_CHARACTERS + 1))


def test_it_runs_in_another_process_and_survives_its_end() -> None:
    template = ChatTemplate("{{ messages[0].content }}!")
    assert template.render(TALK) == "Hi!"
    for pid in render_pool().pids:
        assert Path(f"/proc/{pid}").exists()
    render_pool().close()
    assert template.render(TALK) == "Hi!", "a new process is told the template again"


def test_a_warm_render_costs_little() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    talk = [{"role": "user", "content": "word " * 50}] * 4
    template.render(talk)
    (pid,) = render_pool().pids
    before = time.process_time() + processor_seconds(pid)
    for _ in range(100):
        template.render(talk)
    assert time.process_time() + processor_seconds(pid) - before < 100 * 0.005


def test_a_busy_pool_asks_clients_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}")

    class Full:
        def call(self, *_: object) -> str:
            raise Busy("every process was busy")

    monkeypatch.setattr(template_module, "render_pool", Full)
    with pytest.raises(RequestError) as caught:
        template.render(TALK)
    assert caught.value.code == "queue_full"
