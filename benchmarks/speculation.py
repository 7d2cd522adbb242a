"""What guessing gains: tokens per second of one stream with and without, on text that repeats its
prompt and on text that does not.

    python benchmarks/speculation.py model.gguf [--draft small.gguf] [--tokens 160]

Both answers are greedy; that they are the same is checked. Runs alternate, and the best of each
kind counts, so that a busy machine harms neither.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress.loading import open_artifact
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.loading import load_executor
from runtime.text.template import load_template

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.engine.batch import Executor
    from runtime.text.tokenizer import Tokenizer

PARAGRAPH = (
    "The lighthouse keeper wrote down the weather three times a day, at six, at noon and at "
    "sunset, in a ledger bound with green cloth. On the fourth of March the wind turned north, "
    "the glass fell to twenty-nine inches, and by evening eleven ships had come in for shelter."
)
COPIES = "\n\n".join([PARAGRAPH] * 3 + ["The lighthouse keeper"])
CASES = {
    "repeats": (COPIES, False),
    "copies": (f"Repeat this text exactly, word for word:\n\n{PARAGRAPH}", True),
    "new text": ("Write a short story about a fox who learns to swim.", True),
}
"""Prompts, and whether they are put into the chat template."""


def prompt_of(model: "Model", tokenizer: "Tokenizer", text: str, chat: bool) -> tuple[int, ...]:
    template = load_template(model) if chat else None
    if template is not None:
        text = template.render([{"role": "user", "content": text}])
    return tuple(tokenizer.encode(text, add_special_tokens=template is None))


def run(
    engine: Engine, prompt: tuple[int, ...], tokens: int, endings: frozenset[int]
) -> tuple[float, list[int]]:
    """Seconds from the first token to the last, and the text."""
    engine.add(Request("a", prompt, tokens, SamplingParams(temperature=0), endings))
    text: list[int] = []
    first = last = 0.0
    while engine.has_work:
        for event in engine.step():
            last = time.perf_counter()
            first = first or last
            assert event.token_id is not None, event.error
            text.append(event.token_id)
    return last - first, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = open_artifact(args.model)
    executor = load_executor(model, context_tokens=4096)
    draft: Executor | None = None
    if args.draft is not None:
        draft = load_executor(open_artifact(args.draft)[0], context_tokens=4096)
    for name, (text, chat) in CASES.items():
        prompt = prompt_of(model, tokenizer, text, chat)
        best = {False: 0.0, True: 0.0}
        said: list[int] = []
        for _ in range(args.rounds):
            for guessing in (False, True):
                options = EngineOptions(prompt_lookup=guessing)
                engine = Engine(executor, options, draft_executor=draft if guessing else None)
                seconds, answer = run(engine, prompt, args.tokens, tokenizer.ending_ids)
                said = said or answer
                assert answer == said, "guessing changed the text"
                best[guessing] = max(best[guessing], (len(answer) - 1) / seconds)
                stats = engine.stats
        print(
            f"{name:9} {best[False]:7.1f} -> {best[True]:7.1f} tokens/s, "
            f"{best[True] / best[False]:.2f} x; {stats.accepted_draft_tokens} of "
            f"{stats.draft_tokens} guesses came true in {stats.steps} steps"
        )


if __name__ == "__main__":
    main()
