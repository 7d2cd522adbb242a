"""GuideLLM's own command line, as its users run it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runtime.server.harness import Running
from tests.tiny import write_tokenizer

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        find_spec("guidellm") is None, reason="guidellm is not installed: run `make test-clients`"
    ),
]
OUTPUT = 8


def test_a_benchmark_counts_every_token(server: Running, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    report = tmp_path / "report.json"
    options = {
        "--backend": f"kind=openai_http,target={server.url}",
        "--profile": "kind=concurrent,streams=2",
        "--constraint": "kind=max_requests,count=4",
        "--tokenizer": f"kind=huggingface_auto,model={tmp_path}",
        "--data": f"kind=synthetic_text,prompt_tokens=16,output_tokens={OUTPUT}",
        "--output": f"kind=json,path={report}",
    }
    words = [word for option in options.items() for word in option]
    subprocess.run(
        [sys.executable, "-m", "guidellm", "run", *words, "--disable-console"],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"] and len(requests["successful"]) == 4
    assert all(one["output_tokens"] == OUTPUT for one in requests["successful"])
