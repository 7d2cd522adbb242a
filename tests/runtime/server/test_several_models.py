"""Several models in one server, over HTTP: who answers, and loading and unloading under load."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from quant.format.errors import InputError
from runtime.server.registry import Registry
from runtime.server.registry_memory import MemoryBudget
from runtime.server.registry_models import Loaded, ModelSettings
from runtime.server.registry_names import parse_alias, parse_shadow
from tests.runtime.server.harness import ScriptedExecutor, make_service, serving, tiny_tokenizer
from tests.waiting import eventually


def scripted(name: str, text: str, hold: Callable[[], object] = lambda: None) -> ModelSettings:
    """A model that says `text` again and again."""

    def load() -> Loaded:
        script = tiny_tokenizer().encode(text, add_special_tokens=False)
        service, _, _ = make_service(ScriptedExecutor(script, hold=hold))
        service.model_name = name
        return Loaded(service)

    card = {"max_model_len": 300, "evaluation": {"kld": {"mean": 0.01}}}
    return ModelSettings(name, load, needs={"weights": 100}, card=card)


def ask(http: httpx.Client, model: str | None, **fields: Any) -> httpx.Response:
    body = {"prompt": [5], "max_tokens": 3, "temperature": 0, **fields}
    return http.post("/v1/completions", json=body if model is None else {**body, "model": model})


def cards(http: httpx.Client) -> dict[str, dict[str, Any]]:
    return {card["id"]: card for card in http.get("/v1/models").json()["data"]}


def test_each_name_is_answered_by_its_model() -> None:
    registry = Registry(
        [scripted("a", "aaaa"), scripted("b", "bbbb")],
        [parse_alias("prod=b"), parse_alias("half=a:1,b:1")],
    )
    with serving(registry) as http:
        assert {name: card.get("state") for name, card in cards(http).items()} == {
            "a": "unloaded", "b": "unloaded", "prod": None, "half": None,
        }  # fmt: skip
        for name, model, text in (("b", "b", "bbb"), ("prod", "b", "bbb"), (None, "a", "aaa")):
            answer = ask(http, name).json()
            assert (answer["model"], answer["choices"][0]["text"]) == (model, text)
        users = {user: ask(http, "half", user=user).json()["model"] for user in map(str, range(8))}
        assert set(users.values()) == {"a", "b"}
        assert all(ask(http, "half", user=user).json()["model"] == m for user, m in users.items())
        chosen = {ask(http, "half").json()["model"] for _ in range(32)}
        assert chosen == {"a", "b"}  # alike by chance once in 2^31 runs
        found = cards(http)
        assert found["a"]["state"] == found["b"]["state"] == "ready"
        assert found["a"]["evaluation"] == {"kld": {"mean": 0.01}}
        assert found["b"]["aliases"] == ["prod", "half"]
        assert found["half"]["targets"] == [
            {"model": "a", "share": 0.5},
            {"model": "b", "share": 0.5},
        ]
        assert found["half"]["max_model_len"] == found["a"]["max_model_len"] == 256
        assert http.get("/v1/models/prod").json()["root"] == "b"
        assert http.get("/v2/models/half").json()["name"] == "half"
        assert http.get("/v2/models/half/ready").json()["ready"] is True
        missing = ask(http, "c")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


def test_unloading_waits_for_a_stream_and_refuses_what_comes_meanwhile() -> None:
    gate = threading.Event()
    registry = Registry([scripted("a", "aaaa", hold=partial(gate.wait, 60)), scripted("b", "b")])
    with serving(registry) as http, ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, http, "a", stream=True, max_tokens=5)
        eventually(lambda: registry.models["a"].in_use == 1)
        body = {"drain_seconds": 10}
        unloading = pool.submit(http.post, "/v1/admin/models/a/unload", json=body)
        eventually(lambda: registry.models["a"].state == "unloading")
        refused = ask(http, "a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_loaded")
        assert http.post("/v1/admin/models/a/load").status_code == 409
        assert ask(http, "b").status_code == 200, "the other model is alive"
        gate.set()
        assert running.result(60).text.endswith("data: [DONE]\n\n")
        assert '"error"' not in running.result().text
        assert unloading.result(60).json()["state"] == "unloaded"
        assert ask(http, "a").status_code == 503
        assert http.post("/v1/admin/models/a/load").json()["state"] == "ready"
        assert ask(http, "a").json()["choices"][0]["text"] == "aaa"


def test_an_unload_that_runs_out_of_time_is_a_conflict_unless_forced() -> None:
    gate = threading.Event()
    registry = Registry([scripted("a", "aaaa", hold=partial(gate.wait, 60))])
    with serving(registry) as http, ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, http, "a", stream=True, max_tokens=200)
        eventually(lambda: registry.models["a"].in_use == 1)
        late = http.post("/v1/admin/models/a/unload", json={"drain_seconds": 0.05})
        assert late.status_code == 409
        assert "still answers 1 requests after 0.05 s" in late.json()["error"]["message"]
        forced = pool.submit(
            http.post, "/v1/admin/models/a/unload", json={"drain_seconds": 0, "force": True}
        )
        eventually(lambda: registry.models["a"].state == "unloading")
        gate.set()
        assert forced.result(60).json()["state"] == "unloaded"
        assert '"error"' in running.result(60).text


def test_what_operators_ask_wrongly_is_refused() -> None:
    with serving(Registry([scripted("a", "a")])) as http:
        unload = partial(http.post, "/v1/admin/models/a/unload")
        assert unload(json={"drain_seconds": -1}).json()["error"]["param"] == "drain_seconds"
        assert unload(json={"forced": True}).json()["error"]["param"] == "forced"
        assert http.post("/v1/admin/models/x/unload").status_code == 404
        assert http.get("/v1/admin/models/a/unload").status_code == 405
        elsewhere = http.post("/v1/admin/models/a/load", headers={"Sec-Fetch-Site": "cross-site"})
        assert elsewhere.status_code == 403
        assert cards(http)["a"]["state"] == "unloaded"


def test_a_client_that_leaves_while_its_model_is_loaded_is_forgotten() -> None:
    gate = threading.Event()
    slow = scripted("a", "a")

    def load() -> Loaded:
        assert gate.wait(60)
        return slow.load()

    registry = Registry([ModelSettings("a", load)])
    with serving(registry) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json={"prompt": [5]}, timeout=0.2)
        eventually(lambda: registry.models["a"].num_awaiting == 0)
        gate.set()
        eventually(lambda: registry.models["a"].state == "ready")
        assert registry.models["a"].in_use == 0


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    free = [1000]
    budget = MemoryBudget(lambda: free[0], spare_bytes=10)
    registry = Registry([scripted("a", "a"), scripted("b", "b")], make_room=budget)
    with (
        serving(registry) as http,
        OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert ask(http, "a").status_code == 200
        free[0] = 109
        with pytest.raises(
            openai.InternalServerError, match=r"'b' needs .* \(weights .*free"
        ) as no:
            client.completions.create(model="b", prompt="x")
        assert no.value.status_code == 503 and "unload another model (a)" in str(no.value)
        assert ask(http, "a").status_code == 200
        assert http.post("/v1/admin/models/b/load").status_code == 503
        free[0] = 110
        assert http.post("/v1/admin/models/b/load").json()["state"] == "ready"


def test_idle_models_make_room_the_longest_unused_one_first() -> None:
    names = ["a", "b", "c"]
    registry = Registry(
        [scripted(name, name) for name in names],
        make_room=MemoryBudget(
            lambda: 250 - 100 * len(registry.ready_services()), unload_idle=True, spare_bytes=1
        ),
    )
    registry.load("a")
    registry.load("b")
    a = registry.models["a"]
    assert registry.acquire_now(a) is not None
    registry.load("c")  # b goes: a was used longer ago but is in use
    assert [registry.models[name].state for name in names] == ["ready", "unloaded", "ready"]
    assert registry.acquire_now(registry.models["c"]) is not None
    with pytest.raises(InputError, match=r"'b' needs .* unload another model \(a, c\)"):
        registry.load("b")
    registry.release(a)
    registry.load("b")
    assert [registry.models[name].state for name in names] == ["unloaded", "ready", "ready"]
    registry.close()


def test_shadows_are_asked_the_same_and_nobody_waits_for_them() -> None:
    gate, seen = threading.Event(), threading.Event()

    def hold() -> None:
        seen.set()
        assert gate.wait(60)

    registry = Registry(
        [scripted("a", "aaaa"), scripted("b", "bbbb", hold=hold)],
        shadows=[parse_shadow("a=b:1")],
    )

    def count(outcome: str) -> str:
        name = f'coldpress_shadow_requests_total{{model_name="a",outcome="{outcome}",shadow="b"}}'
        lines = http.get("/metrics").text.splitlines()
        return next((line.split()[-1] for line in lines if line.startswith(name)), "0")

    with serving(registry) as http:
        assert ask(http, "a").status_code == 200
        assert count("dropped") == "1.0", "a shadow is not loaded for a copy"
        registry.load("b")
        for stream in (False, True):
            assert ask(http, "a", stream=stream).status_code == 200
        assert seen.wait(5) and count("answered") == "0"
        assert registry.models["b"].in_use >= 1
        gate.set()
        eventually(lambda: registry.models["b"].in_use == 0)
        eventually(lambda: float(count("answered")) + float(count("dropped")) == 3)
        assert float(count("answered")) >= 1
        before = float(count("answered"))
        assert ask(http, "a", n=1000).status_code == 400, "what is refused is not copied"
        assert ask(http, "b").status_code == 200, "what names the shadow is not copied"
        assert float(count("answered")) == before and count("failed") == "0"


def test_models_come_and_go_under_load_and_every_answer_is_whole() -> None:
    texts = {"a": "aaa", "b": "bbb"}
    registry = Registry([scripted(name, text) for name, text in texts.items()], idle_seconds=0.05)
    statuses: Counter[int] = Counter()

    def keep_asking(number: int) -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            for turn in range(12):
                name = "ab"[(number + turn) % 2]
                stream = turn % 3 == 0
                answer = ask(own, name, stream=stream)
                statuses[answer.status_code] += 1
                if answer.status_code != 200:
                    assert answer.json()["error"]["code"] == "model_not_loaded"
                elif stream:
                    assert answer.text.count('"text":"' + name) == 3
                    assert '"error"' not in answer.text and answer.text.endswith("[DONE]\n\n")
                else:
                    choice = answer.json()["choices"][0]
                    assert (choice["text"], choice["finish_reason"]) == (texts[name], "length")

    def operate() -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            while not asked.is_set():
                unload = {"drain_seconds": 0.02}
                gone = own.post("/v1/admin/models/a/unload", json=unload).status_code
                back = own.post("/v1/admin/models/a/load").status_code
                operations[gone, back] += 1

    operations: Counter[tuple[int, int]] = Counter()
    asked = threading.Event()
    with serving(registry) as http, ThreadPoolExecutor(4) as pool:
        operating = pool.submit(operate)
        asking = [pool.submit(keep_asking, number) for number in range(3)]
        try:
            for one in asking:
                one.result(60)
        finally:
            asked.set()
        operating.result(60)
        assert set(statuses) <= {200, 503} and statuses[200] >= 18  # those to b at the least
        assert {status for pair in operations for status in pair} <= {200, 409}
        assert operations[200, 200] > 0
        eventually(lambda: all(model.in_use == 0 for model in registry.models.values()))


def test_a_client_that_leaves_its_stream_gives_its_model_back() -> None:
    registry = Registry([scripted("a", "aaaa", hold=partial(time.sleep, 0.01))])
    with serving(registry) as http:
        body = {"model": "a", "prompt": [5], "max_tokens": 200, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.iter_raw()  # held: a dropped iterator closes the connection
            next(pieces)
            assert registry.models["a"].in_use == 1
        eventually(lambda: registry.models["a"].in_use == 0)
