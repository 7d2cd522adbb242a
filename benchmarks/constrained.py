"""What a JSON schema costs: tokens per second of 16 streams with and without one.

    python benchmarks/constrained.py model.gguf [--streams 16] [--tokens 48] [--temperature 1]

The same number of tokens is drawn either way. Runs alternate, and the best of each kind counts, so
that a busy machine harms neither.
"""

import argparse
import json
import time
from pathlib import Path

from coldpress.loading import open_artifact
from runtime.engine.constraint import Constraint
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.loading import load_executor
from runtime.text.grammar.compiler import GrammarCompiler

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 30},
        "born": {"type": "string", "format": "date"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+[.](com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "boss": {"anyOf": [{"$ref": "#/$defs/person"}, {"type": "null"}]},
    },
    "required": ["name", "born", "age", "mail", "tags", "boss"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "array",
    "items": {"$ref": "#/$defs/person"},
    "minItems": 100,
    "$defs": {"person": PERSON},
}
PROMPT = "A list of people with their names, birthdays, ages, addresses and bosses, as JSON:\n"


def run(engine: Engine, requests: list[Request]) -> tuple[float, int]:
    """Seconds of the steps in which all streams ran, and the tokens that those gave."""
    for request in requests:
        engine.add(request)
    while engine.num_waiting:
        engine.step()
    start, tokens = time.perf_counter(), 0
    while engine.num_running == len(requests):
        events = engine.step()
        assert all(event.error is None for event in events), events
        tokens += sum(event.token_id is not None for event in events)
    seconds = time.perf_counter() - start
    while engine.has_work:
        engine.step()
    return seconds, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = open_artifact(args.model)
    executor = load_executor(model, context_tokens=args.streams * 256)
    grammars = GrammarCompiler(lambda: tokenizer, executor.vocab_size)
    options = EngineOptions(max_running=args.streams)
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    start = time.perf_counter()
    grammars.matcher(constraint)
    print(f"vocabulary and grammar ready after {time.perf_counter() - start:.2f} s")
    prompt = tuple(tokenizer.encode(PROMPT))
    rates = {False: 0.0, True: 0.0}
    for round_ in range(args.rounds):
        for constrained in (False, True):
            requests = [
                Request(
                    f"{stream}",
                    prompt,
                    args.tokens,
                    SamplingParams(temperature=args.temperature, seed=round_ * 100 + stream),
                    constraint=constraint if constrained else None,
                )
                for stream in range(args.streams)
            ]
            seconds, tokens = run(Engine(executor, options, grammars=grammars), requests)
            rates[constrained] = max(rates[constrained], tokens / seconds)
    cost = 1 - rates[True] / rates[False]
    print(f"free        {rates[False]:8.1f} tokens/s")
    print(f"constrained {rates[True]:8.1f} tokens/s, {cost:.1%} less")


if __name__ == "__main__":
    main()
