"""Constraints cross to a worker, which makes their grammars from the artifact's own tokenizer."""

import json
from pathlib import Path

import pytest

from coldpress.loading import StartedModel
from runtime.engine.constraint import Constraint, ConstraintError
from runtime.engine.request import SamplingParams
from runtime.generation import GenerationParams
from runtime.worker.opening import grammars_of
from runtime.worker.spec import ModelSpec
from tests.tiny import tiny_checkpoint, write_tokenizer


def test_an_answer_from_a_worker_is_held_to_its_schema(tmp_path: Path) -> None:
    """And what that took there is counted here."""
    tiny_checkpoint(tmp_path)
    write_tokenizer(tmp_path)
    started = StartedModel(ModelSpec(tmp_path, "tiny", kv_cache_bytes=1 << 22))
    try:
        service = started.service()
        schema = {"type": "array", "items": {"enum": ["é", 2]}, "minItems": 2, "maxItems": 3}
        params = GenerationParams(
            max_tokens=100,
            sampling=SamplingParams(seed=1),
            constraint=Constraint("json_schema", json.dumps(schema)),
        )
        for _ in range(2):
            deltas = list(service.submit(service.encode("List:"), params))
            assert deltas[-1].finish_reason == "stop", deltas[-1]
            found = json.loads("".join(delta.text for delta in deltas))
            assert 2 <= len(found) <= 3 and set(found) <= {"é", 2}
        stats = started.engine.stats()
        assert (stats.grammar_hits, stats.grammar_misses, stats.grammar_refusals) == (1, 1, 0)
        assert sum(stats.grammar_times.values()) == 1 and stats.grammar_seconds > 0
    finally:
        started.close()


def test_a_tokenizer_that_cannot_be_read_fails_constraints_alone(tmp_path: Path) -> None:
    grammars = grammars_of(ModelSpec(tmp_path, "nothing here"), 384)
    constraint = Constraint("regex", "a")
    for _ in range(2):
        with pytest.raises(ConstraintError, match="tokenizer cannot be read"):
            grammars.matcher(constraint)
        assert not grammars.knows(constraint)
