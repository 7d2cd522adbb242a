"""What clients of llama.cpp's server look up before they ask anything."""

import threading
from functools import partial

import httpx

from runtime.generation import GenerationParams
from tests.runtime.server.harness import MODEL, ScriptedExecutor, running, tiny_tokenizer
from tests.waiting import eventually


def test_props_tell_context_slots_and_template(http: httpx.Client) -> None:
    props = http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["default_generation_settings"]["params"]["temperature"] == 1.0
    assert props["total_slots"] == 16 and props["model_path"] == props["model_alias"] == MODEL
    assert "im_start" in props["chat_template"] and props["build_info"].startswith("coldpress-")
    assert props["eos_token"] == tiny_tokenizer().special_tokens["eos_token"]
    assert props["modalities"] == {"vision": False, "audio": False}
    assert http.get("/props", params={"model": "other"}).status_code == 404


def test_health_in_llamacpps_words(http: httpx.Client) -> None:
    assert http.get("/v1/health").json() == {"status": "ok"}


def test_slots_are_the_places_of_the_batch() -> None:
    gate = threading.Event()
    with running(ScriptedExecutor(hold=partial(gate.wait, 60)), max_running=2) as server:
        slots = httpx.get(f"{server.url}/slots", timeout=60).json()
        assert slots == [{"id": i, "n_ctx": 256, "is_processing": False} for i in range(2)]
        server.service.submit([5], GenerationParams(max_tokens=3))

        def busy() -> list[bool]:
            return [
                slot["is_processing"]
                for slot in httpx.get(f"{server.url}/slots", timeout=60).json()
            ]

        query = {"fail_on_no_slot": "1"}
        eventually(lambda: busy() == [True, False])
        assert httpx.get(f"{server.url}/slots", params=query, timeout=60).status_code == 200
        server.service.submit([5], GenerationParams(max_tokens=3))
        gate.set()
        eventually(lambda: busy() == [False, False])
