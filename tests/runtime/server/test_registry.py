"""Loading on demand, unloading under load, and what clients are told meanwhile."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.errors import InputError
from runtime.server import registry as registry_module
from runtime.server.errors import ApiError
from runtime.server.registry import Registry
from tests.runtime.server.fake_models import FakeModel, use
from tests.waiting import eventually


def registry_of(*models: FakeModel, idle_seconds: float | None = None) -> Registry:
    return Registry([model.settings for model in models], idle_seconds=idle_seconds)


def test_the_first_request_loads_a_model_and_the_next_one_finds_it() -> None:
    a, b = FakeModel("a"), FakeModel("b")
    registry = registry_of(a, b)
    assert registry.ready_services() == {}
    assert use(registry, "b").model_name == "b"
    assert use(registry, "b") is registry.ready_services()["b"]
    assert (a.num_loads, b.num_loads) == (0, 1)
    assert registry.models["b"].in_use == 2


def test_requests_that_come_together_share_one_load() -> None:
    a = FakeModel("a")
    a.gate.clear()
    registry = registry_of(a)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(use, registry, "a") for _ in range(8)]
        eventually(lambda: registry.models["a"].num_awaiting == 8)
        a.gate.set()
        services = {id(one.result(5)) for one in asked}
    assert len(services) == a.num_loads == 1
    assert registry.models["a"].in_use == 8


def test_loads_run_one_after_the_other() -> None:
    a, b = FakeModel("a"), FakeModel("b")
    a.gate.clear()
    registry = registry_of(a, b)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, registry, "a")
        eventually(lambda: registry.models["a"].state == "loading")
        second = pool.submit(use, registry, "b")
        eventually(lambda: registry.models["b"].num_awaiting == 1)
        assert b.num_loads == 0
        a.gate.set()
        assert first.result(5).model_name == "a" and second.result(5).model_name == "b"


def test_a_failed_load_is_an_error_on_that_model_alone() -> None:
    now = [100.0]
    a, b = FakeModel("a"), FakeModel("b")
    registry = Registry([a.settings, b.settings], clock=lambda: now[0])
    a.failure = InputError("a.gguf: is cut off; download it again")
    for _ in range(2):
        with pytest.raises(
            ApiError, match=r"'a' could not be loaded: a\.gguf: is cut off"
        ) as failed:
            use(registry, "a")
        assert (failed.value.status, failed.value.code) == (503, "model_load_failed")
    assert failed.value.headers["Retry-After"] == "10"
    assert use(registry, "b").model_name == "b"
    a.failure = None
    with pytest.raises(ApiError):  # not tried again at once
        use(registry, "a")
    now[0] += 10
    assert use(registry, "a").model_name == "a"


def test_what_a_loader_raises_reaches_whoever_loads() -> None:
    a = FakeModel("a")
    a.failure = InputError("a.gguf: is cut off")
    registry = registry_of(a)
    with pytest.raises(InputError, match="is cut off"):
        registry.load("a")
    a.failure = None
    registry.load("a")
    registry.load("a")
    assert a.num_loads == 1


def test_an_unload_waits_for_running_requests() -> None:
    a = FakeModel("a")
    registry = registry_of(a)
    model = registry.models["a"]
    use(registry, "a")
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(registry.unload, "a", 5)
        eventually(lambda: model.state == "unloading")
        with pytest.raises(ApiError, match="is not loaded; an operator") as refused:
            use(registry, "a")
        assert refused.value.status == 503
        assert not unloading.done() and a.num_closes == 0
        registry.release(model)
        unloading.result(5)
    assert (model.state, a.num_closes) == ("unloaded", 1)


def test_an_unload_that_cannot_wait_longer_leaves_the_model_or_ends_its_requests() -> None:
    a = FakeModel("a")
    registry = registry_of(a)
    use(registry, "a")
    with pytest.raises(ApiError, match=r"still answers 1 requests after 0\.01 s") as conflict:
        registry.unload("a", 0.01)
    assert conflict.value.status == 409
    assert use(registry, "a").model_name == "a" and a.num_loads == 1
    registry.unload("a", 0.0, force=True)
    assert a.num_closes == 1
    # Leases of requests that were ended are given back late, and harm nobody.
    registry.release(registry.models["a"])
    registry.release(registry.models["a"])
    registry.load("a")
    assert registry.models["a"].in_use == 0


def test_only_an_operator_brings_back_what_an_operator_unloaded() -> None:
    a = FakeModel("a")
    registry = registry_of(a)
    registry.unload("a")
    registry.unload("a")
    with pytest.raises(ApiError, match="POST /v1/admin/models/a/load"):
        use(registry, "a")
    registry.load("a")
    assert use(registry, "a").model_name == "a"


def test_loading_and_unloading_do_not_overtake_each_other() -> None:
    a = FakeModel("a")
    a.gate.clear()
    registry = registry_of(a)
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(registry.load, "a")
        eventually(lambda: registry.models["a"].state == "loading")
        with pytest.raises(ApiError, match="is loading right now") as conflict:
            registry.unload("a")
        assert conflict.value.status == 409
        a.gate.set()
        loading.result(5)
        use(registry, "a")
        unloading = pool.submit(registry.unload, "a", 5)
        eventually(lambda: registry.models["a"].state == "unloading")
        for again in (registry.load, registry.unload):
            with pytest.raises(ApiError, match="unload") as conflict:
                again("a")
            assert conflict.value.status == 409
        registry.release(registry.models["a"])
        unloading.result(5)


def test_a_model_that_nobody_uses_is_unloaded_and_comes_back_on_demand() -> None:
    a = FakeModel("a")
    registry = registry_of(a, idle_seconds=0.05)
    use(registry, "a")
    time.sleep(0.15)
    assert a.num_closes == 0, "it was in use"
    registry.release(registry.models["a"])
    eventually(lambda: a.num_closes == 1)
    assert use(registry, "a").model_name == "a" and a.num_loads == 2
    registry.close()


def test_a_model_that_was_given_as_it_is_stays_when_idle() -> None:
    registry = Registry.of([FakeModel("a").load().service])
    assert registry.idle_models() == [] and not registry.unload_idle(registry.models["a"])
    assert use(registry, "a").model_name == "a"


def test_so_many_may_wait_for_a_load_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MAX_AWAITING", 2)
    a = FakeModel("a")
    a.gate.clear()
    registry = registry_of(a)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(use, registry, "a") for _ in range(2)]
        eventually(lambda: registry.models["a"].num_awaiting == 2)
        with pytest.raises(ApiError, match="2 requests wait for it") as refused:
            use(registry, "a")
        assert refused.value.status == 429 and refused.value.headers["Retry-After"] == "1"
        a.gate.set()
        assert {one.result(5).model_name for one in waiting} == {"a"}


def test_a_request_that_stops_waiting_leaves_the_load_alone() -> None:
    a = FakeModel("a")
    a.gate.clear()
    registry = registry_of(a)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(registry.acquire(registry.models["a"]))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(give_up())
    assert registry.models["a"].num_awaiting == 0
    a.gate.set()
    registry.load("a")
    assert (registry.models["a"].in_use, a.num_loads) == (0, 1)


def test_what_is_loaded_after_the_end_is_closed() -> None:
    a = FakeModel("a")
    a.gate.clear()
    registry = registry_of(a)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(use, registry, "a")
        eventually(lambda: registry.models["a"].num_awaiting == 1)
        registry.close()
        a.gate.set()
        with pytest.raises(ApiError, match="shutting down"):
            waiting.result(5)
    eventually(lambda: a.num_closes == 1)


@given(st.lists(st.sampled_from(["use", "release", "unload", "load", "idle"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_the_books_are_right(steps: list[str]) -> None:
    a = FakeModel("a")
    registry = registry_of(a)
    model, leases = registry.models["a"], 0
    for step in steps:
        try:
            if step == "use":
                use(registry, "a")
                leases += 1
            elif step == "release" and leases:
                registry.release(model)
                leases -= 1
            elif step == "unload":
                registry.unload("a", 0.0)
            elif step == "load":
                registry.load("a")
            elif step == "idle":
                assert registry.unload_idle(model) is False or leases == 0
        except ApiError as error:
            assert error.status in (409, 503)
        assert model.in_use == leases
        assert a.num_loads - a.num_closes == (model.state == "ready")
        assert model.state == "ready" or leases == 0, "a model was taken from a request"
        assert model.changing is None
