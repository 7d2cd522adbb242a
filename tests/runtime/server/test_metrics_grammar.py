"""How grammars fare in the engine, as a scrape tells it."""

import re

import httpx

from tests.runtime.server.harness import MODEL, running
from tests.runtime.text.grammar.harness import RandomModel


def figures(text: str, name: str) -> dict[str, float]:
    found = re.findall(rf"^coldpress_engine_grammar{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    label = f'model_name="{MODEL}"'
    return {labels.replace(label, "").strip(","): float(value) for labels, value in found}


def test_hits_and_compilations_are_told_apart() -> None:
    with running(RandomModel(eager=3.0)) as server, httpx.Client(timeout=60) as http:
        for pattern in ("[ab]{3}", "[ab]{3}", "x|yz"):
            body = {"prompt": "a", "guided_regex": pattern, "max_tokens": 20}
            assert http.post(f"{server.url}/v1/completions", json=body).status_code == 200
        text = http.get(f"{server.url}/metrics").text
    outcomes = {"hit": 1, "compiled": 2, "refused": 0, "failed": 0}
    assert figures(text, "s_total") == {f'outcome="{k}"': v for k, v in outcomes.items()}
    buckets = figures(text, "_compile_seconds_bucket")
    assert buckets['le="+Inf"'] == 2 and list(buckets.values()) == sorted(buckets.values())
    assert figures(text, "_compile_seconds_sum")[""] > 0
