"""A tiny random model with a real tokenizer, whose answers are held to constraints."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from runtime.engine.batch import StepBatch
from runtime.engine.constraint import Constraint
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams, TokenEvent
from runtime.text.grammar.compiler import GrammarCompiler
from tests.runtime.server.harness import tiny_tokenizer

VOCAB = 384


class RandomModel:
    """Logits that depend on the last token and its position alone, and look random.

    eager: added to the logits of tokens that JSON ends things with, so that answers end.
    """

    def __init__(self, *, num_pages: int = 512, eager: float = 0.0) -> None:
        self.vocab_size = VOCAB + 8
        self.max_positions = 2_000
        self.page_size = 8
        self.num_pages = num_pages
        self._table = np.random.default_rng(0).normal(0, 2, (64, self.vocab_size))
        self._table = self._table.astype(np.float32)
        closing = [i for i in range(VOCAB) if set(tiny_tokenizer().token_bytes(i)) & set(b'"}],')]
        self._table[:, [*closing, *tiny_tokenizer().ending_ids]] += eager

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        rows = batch.logit_rows
        keys = (batch.token_ids[rows] * 31 + batch.positions[rows] * 7) % len(self._table)
        return np.array(self._table[keys], np.float32)

    def close(self) -> None: ...


@dataclass
class Answer:
    tokens: list[int]
    end: TokenEvent

    @property
    def text(self) -> str:
        return text_of(self.tokens)


@cache
def tiny_grammars() -> GrammarCompiler:
    return GrammarCompiler(tiny_tokenizer, RandomModel().vocab_size)


def text_of(tokens: Iterable[int]) -> str:
    return b"".join(map(tiny_tokenizer().token_bytes, tokens)).decode()


def request(
    name: str,
    constraint: Constraint | None,
    *,
    max_tokens: int = 400,
    min_tokens: int = 0,
    prompt: tuple[int, ...] = (5, 6, 7),
    sampling: SamplingParams | None = None,
) -> Request:
    return Request(
        name,
        prompt,
        max_tokens,
        sampling or SamplingParams(seed=len(name)),
        frozenset(tiny_tokenizer().ending_ids),
        min_tokens,
        constraint=constraint,
    )


def answers(
    requests: Iterable[Request],
    model: RandomModel | None = None,
    *,
    grammars: GrammarCompiler | None = None,
    **options: int,
) -> dict[str, Answer]:
    """Every request run to its end in one engine; ending tokens are left out."""
    engine = Engine(
        model or RandomModel(),
        EngineOptions(**options),  # type: ignore[arg-type]
        check=True,
        grammars=grammars or tiny_grammars(),
    )
    tokens: dict[str, list[int]] = {}
    ends: dict[str, TokenEvent] = {}
    for one in requests:
        engine.add(one)
        tokens[one.request_id] = []
    while engine.has_work:
        for event in engine.step():
            assert event.request_id not in ends, "an event after the end"
            if event.finish_reason is not None:
                ends[event.request_id] = event
            if event.token_id is not None and event.finish_reason != "stop":
                tokens[event.request_id].append(event.token_id)
    return {name: Answer(tokens[name], end) for name, end in ends.items()}
