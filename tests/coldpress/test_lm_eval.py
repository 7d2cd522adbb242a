"""The harness's three questions, asked by a stand-in; see test_lm_eval_harness for the real one."""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldpress.loading import Machine, open_artifact, open_executor
from quant.format.errors import InputError, MissingExtraError
from runtime.evaluation.protocol import chunk_batch
from runtime.evaluation.scores import log_softmax
from tests.tiny import TEXT

CONTEXT = "The press stands in the corner"
PAIRS = [
    (CONTEXT, " of the workshop"),
    (CONTEXT + " ", "of the farm"),
    ("", "Nothing is heated"),
    (CONTEXT, " of the workshop, where the light"),
    (TEXT, " jar"),
    ("a", TEXT[:300]),
]


@dataclass
class Instance:
    """What a task asks."""

    args: tuple[Any, ...]


@dataclass
class Hook:
    """Remembers what the harness would keep."""

    seen: list[tuple[str, Any, Any]] = field(default_factory=list)

    def add_partial(self, question: str, args: Any, answer: Any) -> None:
        self.seen.append((question, args, answer))


def stand_in() -> dict[str, types.ModuleType]:
    """The names of lm_eval that the adapter uses, with what the real ones promise."""

    class LM:
        def __init__(self) -> None:
            self.cache_hook = Hook()

    models: dict[str, type] = {}

    def register_model(*names: str) -> Callable[[type], type]:
        def decorate(model: type) -> type:
            assert issubclass(model, LM)
            models.update(dict.fromkeys(names, model))
            return model

        return decorate

    modules = {
        name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.models")
    }
    modules["lm_eval.api.model"] = types.ModuleType("lm_eval.api.model")
    modules["lm_eval.api.registry"] = types.ModuleType("lm_eval.api.registry")
    modules["lm_eval.api.model"].__dict__["LM"] = LM
    modules["lm_eval.api.registry"].__dict__.update(register_model=register_model, models=models)
    return modules


@pytest.fixture
def adapter() -> Iterator[Any]:
    with without_harness():
        sys.modules.update(stand_in())
        yield importlib.import_module("coldpress.lm_eval")


@contextmanager
def without_harness() -> Iterator[None]:
    """As if neither the harness nor the adapter had ever been imported."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_harness(name)}
    try:
        yield
    finally:
        for name in filter(_is_harness, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(kept)


def _is_harness(name: str) -> bool:
    return name.startswith(("lm_eval", "coldpress.lm_eval"))


@pytest.fixture
def model(adapter: Any, tiny: Path) -> Iterator[Any]:
    found = sys.modules["lm_eval.api.registry"].models["coldpress"](
        artifact=str(tiny), device="cuda:0"
    )
    yield found
    found.close()


def slow_score(path: Path, context: list[int], answer: list[int], longest: int) -> float:
    """One forward through the reference, from nothing."""
    opened, _ = open_artifact(path)
    tokens = np.array([*context, *answer][-longest - 1 :], np.int32)
    executor = open_executor(opened, Machine("torch"), tokens=len(tokens))
    logits = executor.step(chunk_batch(executor, tokens, 0, len(tokens) - 1))
    rows = log_softmax(logits)[-len(answer) :]
    return float(rows[np.arange(len(answer)), answer].sum())


def test_continuations_have_the_probabilities_of_the_reference(model: Any, tiny: Path) -> None:
    found = model.loglikelihood([Instance(pair) for pair in PAIRS], disable_tqdm=True)
    for pair, (score, greedy) in zip(PAIRS, found, strict=True):
        context, answer = model._encode_pair(*pair)
        expected = slow_score(tiny, context, answer, model.max_length)
        # Both are float32 forwards; a token's loss differs by rounding alone, see test_commands.
        assert score == pytest.approx(expected, abs=1e-4 * len(answer))
        assert isinstance(greedy, bool)
    assert [seen[1] for seen in model.cache_hook.seen] == PAIRS


def test_order_and_shared_contexts_change_nothing(model: Any) -> None:
    requests = [Instance(pair) for pair in PAIRS]
    together = model.loglikelihood(requests, disable_tqdm=True)
    backwards = model.loglikelihood(requests[::-1], disable_tqdm=True)
    assert backwards[::-1] == together
    for request, result in zip(requests, together, strict=True):
        model.close()
        assert model.loglikelihood([request], disable_tqdm=True) == [result]


def test_the_greedy_answer_is_known_as_such(model: Any) -> None:
    settings = {"until": [], "max_gen_toks": 4}
    (answer,) = model.generate_until([Instance((CONTEXT, settings))], disable_tqdm=True)
    context = model._encode(CONTEXT)
    tokens = model._answering().generate(CONTEXT, max_tokens=4)
    assert answer == tokens[0].text
    steps: list[int] = []
    opened, _ = open_artifact(model._path)
    executor = open_executor(opened, Machine(), tokens=64)
    for _ in range(3):
        row = np.array([*context, *steps], np.int32)
        logits = executor.step(chunk_batch(executor, row, 0, len(row)))
        steps.append(int(logits[-1].argmax()))
    executor.close()
    scorer = model._scoring()
    assert scorer.score([*context, *steps], 3)[1]
    assert not scorer.score([*context, *steps[:-1], (steps[-1] + 1) % 300], 3)[1]


def test_answers_end_where_they_are_told_to(model: Any) -> None:
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}
    (whole,) = model.generate_until([Instance((CONTEXT, settings))], disable_tqdm=True)
    stop = whole[3:5]
    asked = [Instance((CONTEXT, {"until": stop, "max_gen_toks": 12})), Instance((TEXT * 3, {}))]
    first, second = model.generate_until(asked, disable_tqdm=True)
    assert first == whole[: whole.index(stop)]
    assert isinstance(second, str)
    with pytest.raises(InputError, match="no room"):
        model.generate_until([Instance((CONTEXT, {"max_gen_toks": 256}))])
    with pytest.raises(InputError, match="num_beams"):
        model.generate_until([Instance((CONTEXT, {"num_beams": 4}))])


def test_whole_texts_add_up(model: Any, tiny: Path) -> None:
    texts = ["the press", TEXT * 2]
    found = model.loglikelihood_rolling([Instance((text,)) for text in texts], disable_tqdm=True)
    for text, total in zip(texts, found, strict=True):
        expected = 0.0
        tokens = [model._prefix_id, *model._encode(text)]
        longest = model.max_length
        for start in range(1, len(tokens), longest):
            answer = tokens[start : start + longest]
            begin = max(0, start + len(answer) - 1 - longest)
            expected += slow_score(tiny, tokens[begin:start], answer, longest)
        assert total == pytest.approx(expected, abs=1e-4 * len(tokens))


def test_chats_go_through_the_model_s_own_template(model: Any) -> None:
    prompt = model.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert prompt.endswith("<|im_start|>assistant\n")
    open_ended = model.apply_chat_template([{"role": "user", "content": "Hello"}], False)
    assert prompt.startswith(open_ended) and model.chat_template(True) == model.tokenizer_name


def test_without_the_harness_the_extra_is_named() -> None:
    with without_harness():
        sys.modules["lm_eval"] = None  # type: ignore[assignment]
        with pytest.raises(MissingExtraError, match=r"coldpress\[lm-eval\]"):
            importlib.import_module("coldpress.lm_eval")
