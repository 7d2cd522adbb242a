"""The rule by which a page pool gets its size, and the backends."""

from dataclasses import replace
from typing import Any, cast, get_args

import pytest

import runtime.loading
from compile.program import Attend
from quant.format.errors import InputError
from quant.format.tensor import WeightSource
from runtime.executors.cpu import CpuExecutor
from runtime.footprint import weight_bytes
from runtime.kv_cache import KvCacheType, kv_bytes_per_page
from runtime.loading import load_executor
from tests.tiny import tiny_model

MODEL = tiny_model()  # contexts of 256 tokens


def with_free_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(runtime.loading, "available_memory_bytes", lambda: size)


def pages(**options: Any) -> int:
    executor = load_executor(MODEL, page_size=32, **options)
    executor.close()
    return executor.num_pages


def test_a_page_is_what_the_pool_takes_for_it() -> None:
    for page_size in (5, 16, 32):
        for number in get_args(KvCacheType):
            executor = CpuExecutor(MODEL, num_pages=7, page_size=page_size, cache=number)
            assert executor.cache_bytes == 7 * kv_bytes_per_page(MODEL.program, page_size, number)


def test_bytes_of_a_page_are_keys_and_values_and_their_scales() -> None:
    layers = [op for op in MODEL.program.ops if isinstance(op, Attend)]
    each = layers[0].kv_heads * layers[0].head_dim
    numbers = len(layers) * 2 * each * 32
    widths: dict[KvCacheType, float] = {
        "float32": 4,
        "float16": 2,
        "bfloat16": 2,
        "int8": 1 + 4 / layers[0].head_dim,
    }
    for number, width in widths.items():
        assert kv_bytes_per_page(MODEL.program, 32, number) == numbers * width


def test_the_default_pool_holds_sixteen_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 1 << 40)
    assert pages() == 16 * 256 // 32 + 1


def test_little_memory_makes_the_default_pool_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 4 * 20 * kv_bytes_per_page(MODEL.program, 32, "float32"))
    assert pages(exact=True) == 20
    assert pages() == 40, "half as many bytes each"


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unread:
        """Headers alone."""

        def __getattr__(self, name: str) -> Any:
            assert name in ("names", "shape", "scheme"), f"{name} was asked for"
            return getattr(MODEL.weights, name)

    weights, page_bytes = weight_bytes(MODEL), kv_bytes_per_page(MODEL.program, 32, "bfloat16")
    with_free_memory(monkeypatch, weights + 2 * page_bytes - 1)
    model = replace(MODEL, weights=cast(WeightSource, Unread()))
    with pytest.raises(InputError, match=r"does not fit into memory: weights .* KV cache .* free"):
        load_executor(model)
    with_free_memory(monkeypatch, weights + 2 * page_bytes)
    assert pages() == 2
    asked: list[dict[str, Any]] = [
        {"num_pages": 3},
        {"context_tokens": 64},
        {"kv_cache_bytes": 3 * page_bytes},
    ]
    for options in asked:
        with pytest.raises(InputError, match="does not fit into memory"):
            load_executor(model, **options)


def test_the_default_pool_takes_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    page_bytes = kv_bytes_per_page(MODEL.program, 32, "bfloat16")
    with_free_memory(monkeypatch, weight_bytes(MODEL) + 5 * page_bytes)
    assert pages() == 5


def test_the_user_can_size_the_pool_in_tokens_bytes_or_pages() -> None:
    assert pages(context_tokens=100) == 4 + 1
    size = 9 * kv_bytes_per_page(MODEL.program, 32, "float32") + 5
    assert pages(kv_cache_bytes=size, exact=True) == 9
    assert pages(kv_cache_bytes=size) == 18
    eighths = kv_bytes_per_page(MODEL.program, 32, "int8")
    assert pages(kv_cache_bytes=size, kv_cache_type="int8") == size // eighths > 18
    assert pages(num_pages=3) == 3


def test_a_pool_without_a_page_is_refused() -> None:
    with pytest.raises(InputError, match="KV cache"):
        load_executor(MODEL, kv_cache_bytes=100)


def test_an_explicit_type_of_the_cache_outranks_what_follows_from_the_rest() -> None:
    cases: list[tuple[dict[str, Any], KvCacheType]] = [
        ({"exact": True}, "float32"),
        ({}, "bfloat16"),
        ({"exact": True, "kv_cache_type": "int8"}, "int8"),
        ({"kv_cache_type": "float32"}, "float32"),
    ]
    for options, number in cases:
        executor = load_executor(MODEL, num_pages=3, page_size=32, **options)
        assert isinstance(executor, CpuExecutor)
        assert executor.cache_bytes == 3 * kv_bytes_per_page(MODEL.program, 32, number)


def test_a_type_that_the_backend_cannot_choose_is_refused() -> None:
    with pytest.raises(InputError, match="int4"):
        load_executor(MODEL, kv_cache_type="int4")
    with pytest.raises(InputError, match="onnx backend"):
        load_executor(MODEL, backend="onnx", kv_cache_type="int8")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="abacus"):
        load_executor(MODEL, backend="abacus")


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_backends_make_executors_of_the_asked_size(backend: str) -> None:
    executor = load_executor(MODEL, backend=backend, num_pages=5, page_size=16, threads=1)
    assert (executor.num_pages, executor.page_size) == (5, 16)
    assert (executor.vocab_size, executor.max_positions) == (384, 256)
    executor.close()


def test_a_pool_that_holds_no_sequence_is_refused_with_the_least_that_does() -> None:
    page_bytes = kv_bytes_per_page(MODEL.program, 32, "float16")
    with pytest.raises(InputError, match="holds no sequence of this model; give it 1 MB"):
        pages(kv_cache_bytes=2 * page_bytes - 1)
    assert pages(kv_cache_bytes=2 * page_bytes) == 2
