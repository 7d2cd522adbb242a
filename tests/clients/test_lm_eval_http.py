"""lm-evaluation-harness over HTTP says what it says of the same artifact in this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldpress.loading import open_artifact
from runtime.executors.cpu import CpuExecutor
from tests.coldpress.test_lm_eval_harness import ROWS, TASKS, answers, run_tasks
from tests.runtime.server.harness import MODEL, running

harness = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytest.importorskip("tenacity", reason="the extra lm-eval is not installed")
pytestmark = [pytest.mark.clients]


def write_tasks(folder: Path) -> None:
    data = folder / "data.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        text = json.dumps({"task": name, "test_split": "test", **source, **task})
        (folder / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_the_same_over_http(tiny: Path, tmp_path: Path, batch_size: int) -> None:
    import coldpress.lm_eval  # noqa: F401  (makes the model known)

    write_tasks(tmp_path)
    model, _ = open_artifact(tiny)
    with running(CpuExecutor(model, num_pages=64, page_size=8, threads=1)) as server:
        over_http = run_tasks(
            "local-completions",
            f"model={MODEL},base_url={server.url}/v1/completions,tokenizer={tiny},"
            f"tokenizer_backend=huggingface,max_length=128,num_concurrent=2,"
            f"batch_size={batch_size}",
            tmp_path,
        )
    in_process: Any = run_tasks("coldpress", f"artifact={tiny},max_length=127", tmp_path)
    for scored in ("press_choice", "press_text"):
        one, other = (
            np.array(answers(found, scored), np.float64) for found in (over_http, in_process)
        )
        # The same kernels on the same tokens; sums are taken in another order.
        assert one.size and np.allclose(one, other, atol=1e-4)
    assert answers(over_http, "press_answer") == answers(in_process, "press_answer")
