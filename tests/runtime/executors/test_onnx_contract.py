"""ONNX Runtime alone, following docs/ONNX.md and nothing of ours, against the oracle."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from compile.onnx_contract import STEP_INPUTS
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.onnx_models import (
    INT4,
    model_and_artifact,
    random_tokens,
    rounding_bound,
    run_schedule,
)

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "ONNX.md"
PAGE_SIZE = 8


class Plain:
    """A pool and a session. Sequence s of two owns the pages 1 + 4 * s and on."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.pools = {
            port.name: np.zeros((9, PAGE_SIZE, *port.shape[2:]), np.float32)
            for port in self.session.get_inputs()
            if port.name.startswith("pool_")
        }

    def run(self, feeds: dict[str, Any], places: list[tuple[int, int]]) -> npt.NDArray[Any]:
        """Logits; new rows go to `places`, a page and an offset for each token."""
        names = [port.name for port in self.session.get_outputs()]
        arrays = {name: np.array(value, np.int64) for name, value in feeds.items()}
        results = dict(zip(names, self.session.run(names, arrays | self.pools), strict=True))
        for name, pool in self.pools.items():
            for (page, offset), row in zip(
                places, results[name.replace("pool", "new")], strict=True
            ):
                pool[page, offset] = row
        return np.asarray(results["logits"])


@pytest.mark.parametrize("scheme", [None, INT4])
def test_two_steps_by_hand(scheme: Any, tmp_path: Path) -> None:
    """Ten tokens of one sequence; then one more of it beside three of another."""
    model, _ = model_and_artifact(tmp_path, "qwen3", scheme=scheme)
    first, second = random_tokens(11, seed=1), random_tokens(3, seed=2)
    oracle = TorchExecutor(model, num_pages=9, page_size=4, dtype="float64")
    expected = run_schedule(oracle, [[(0, 10)], [(0, 1), (1, 3)]], [first, second])
    plain = Plain(tmp_path)
    feeds: dict[str, Any] = {
        "token_ids": first[:10],
        "positions": range(10),
        "query_rows": [range(10)],
        "query_lengths": [10],
        "token_places": range(10),
        "past_lengths": [0],
        "page_table": [[0]],
        "logit_rows": [0, 9],
    }
    places = [(1, offset) for offset in range(8)] + [(2, 0), (2, 1)]
    logits = plain.run(feeds, places)
    bound = rounding_bound(model, expected[0])
    assert np.abs(logits - expected[0][[0, 9]]).max() <= bound
    feeds = {
        "token_ids": [first[10], *second],
        "positions": [10, 0, 1, 2],
        "query_rows": [[0, 0, 0], [1, 2, 3]],
        "query_lengths": [1, 3],
        "token_places": [0, 3, 4, 5],
        "past_lengths": [10, 0],
        "page_table": [[1, 2], [0, 0]],
        "logit_rows": [0, 3],
    }
    logits = plain.run(feeds, [(2, 2), (5, 0), (5, 1), (5, 2)])
    wanted = np.stack([expected[0][10], expected[1][2]])
    assert np.abs(logits - wanted).max() <= bound


def test_the_document_names_every_input_and_output(tmp_path: Path) -> None:
    model_and_artifact(tmp_path, "llama", layers=1)
    session = Plain(tmp_path).session
    named = set(re.findall(r"`([a-z_]+(?:\.L)?)`", DOCUMENT.read_text("utf-8")))
    ports = [*session.get_inputs(), *session.get_outputs()]
    assert {port.name.replace(".0", ".L") for port in ports} <= named
    assert set(STEP_INPUTS) <= {port.name for port in session.get_inputs()}


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_and_artifact(tmp_path / "DIR", "llama")
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)  # noqa: S102  (our own documentation)
    oracle = TorchExecutor(model, num_pages=9, page_size=4, dtype="float64")
    (expected,) = run_schedule(oracle, [[(0, 3)]], [np.array([1, 5, 9], np.int32)])
    assert found["next_token"] == expected[-1].argmax()
