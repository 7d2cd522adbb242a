"""The real harness: its tasks say the same of an artifact as of the checkpoint in transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

harness = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

ROWS = [
    {"question": "The press stands in", "choices": [" the corner", " a cloud"], "label": 0},
    {"question": "We taste it,", "choices": [" said the river", " said the worker"], "label": 1},
]
TASKS: Mapping[str, Mapping[str, Any]] = {
    "press_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "press_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "press_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def run_tasks(model: str, arguments: str, folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return harness.simple_evaluate(
        model,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )


def answers(results: Any, task: str) -> list[Any]:
    return [response for sample in results["samples"][task] for response in sample["resps"]]


def test_tasks_run_unmodified_and_agree_with_transformers(tiny: Path, tmp_path: Path) -> None:
    import coldpress.lm_eval  # noqa: F401  (makes the model known)

    data = tmp_path / "data.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        text = json.dumps({"task": name, "test_split": "test", **source, **task})
        (tmp_path / f"{name}.yaml").write_text(text)
    ours = run_tasks("coldpress", f"artifact={tiny}", tmp_path)
    theirs = run_tasks("hf", f"pretrained={tiny},dtype=float32", tmp_path)
    for scored in ("press_choice", "press_text"):
        one, other = (np.array(answers(r, scored), np.float64) for r in (ours, theirs))
        # Two float32 forwards of the same weights, over at most a dozen tokens.
        assert one.size and np.allclose(one, other, atol=1e-3)
    assert answers(ours, "press_answer") == answers(theirs, "press_answer")
    accuracy = [r["results"]["press_choice"]["acc,none"] for r in (ours, theirs)]
    assert accuracy[0] == accuracy[1]
