"""Runs the tasks of EleutherAI's lm-evaluation-harness on artifacts, unmodified.

From Python, where importing this module makes "coldpress" a model that the harness knows:

    import coldpress.lm_eval, lm_eval
    lm_eval.simple_evaluate("coldpress", model_args="artifact=DIR", tasks=["hellaswag"])

and from a shell, with every option of its own command line:

    python -m coldpress.lm_eval --model coldpress --model_args artifact=DIR --tasks hellaswag

Texts become tokens as in the harness's own "hf" model: the tokenizer's special tokens are added
unless the text begins with them, spaces before a continuation belong to it, and what is longer than
the context loses its beginning.
"""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from coldpress.llm import LLM
from coldpress.loading import Machine, default_name, open_artifact, open_executor
from coldpress.progress import ProgressReporter
from quant.format.errors import InputError, MissingExtraError
from runtime.engine.request import SamplingParams
from runtime.evaluation.continuations import ContinuationScorer, rolling_windows
from runtime.text.template import load_template

try:
    # The harness lists its own models only while it knows none at all.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise MissingExtraError("running the harness's tasks", "lm-eval", "lm-eval") from error

ANSWER_TOKENS = 256
"""Longest answer where a task names none; half the context where that is less."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = frozenset(field.name for field in fields(SamplingParams))


@register_model("coldpress")
class ColdpressLM(LM):  # type: ignore[misc]
    """An artifact behind the harness's three questions.

    artifact: what `coldpress serve` takes. max_length: tokens of context and continuation, those of
    the model by default. batch_size: answers that share steps. The weights are in memory once:
    scoring and answering take turns. device, max_batch_size: the harness always passes its own
    defaults ("cuda:0"); here the backend says where things run.
    """

    def __init__(
        self,
        artifact: str,
        backend: str = "auto",
        threads: int | None = None,
        max_length: int | None = None,
        batch_size: int | str = 16,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._path, self._machine = Path(artifact), Machine(backend, threads, exact=True)
        self._model, self._tokenizer = open_artifact(self._path)
        self._template = load_template(self._model)
        longest = self._model.program.sizes.max_positions
        self.max_length = min(longest, max_length or longest)
        self._running = int(batch_size) if str(batch_size).isdecimal() else 16
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)
        self._scorer: ContinuationScorer | None = None
        self._llm: LLM | None = None

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For (context, continuation): its log-probability in nats, and whether it is greedy."""
        pairs = [self._encode_pair(*request.args) for request in requests]
        found = self._score(pairs, disable_tqdm)
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts; each token is predicted once, with as much context as
        there is."""
        texts = [self._encode(request.args[0]) for request in requests]
        windows = [rolling_windows(self._prefix_id, text, self.max_length) for text in texts]
        found = iter(self._score([pair for text in windows for pair in text], disable_tqdm))
        totals = [sum(next(found)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to (context, settings), ended by `until` or the model itself."""
        llm = self._answering()
        answers = []
        started = [self._start(llm, *request.args) for request in requests]
        progress = ProgressReporter("answering")
        for index, (request, generation) in enumerate(zip(requests, started, strict=True)):
            answer = "".join(delta.text for delta in generation)
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
            if not disable_tqdm:
                progress(index + 1, len(started), "answers")
        progress.close()
        return answers

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation, by the model's own template."""
        if self._template is None:
            raise InputError(f"{self._path}: has no chat template; leave --apply_chat_template out")
        return self._template.render(chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches of prompts apart."""
        return default_name(self._path)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """For the harness's records: which template was used, by the name of its model."""
        return self.tokenizer_name if chat_template else None

    def close(self) -> None:
        """Free the weights; the next question loads them again."""
        self._open.close()
        self._scorer = self._llm = None

    @property
    def _prefix_id(self) -> int:
        """What stands before a text that nothing stands before."""
        for found in (self._tokenizer.bos_id, self._tokenizer.eos_id):
            if found is not None:
                return found
        raise InputError(f"{self._path}: its tokenizer names no token that begins or ends a text")

    def _encode(self, text: str, *, special: bool = True) -> list[int]:
        begins = self._tokenizer.special_tokens.get("bos_token")
        special = special and not (begins and text.startswith(begins))
        return self._tokenizer.encode(text, add_special_tokens=special)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            tokens = self._encode(continuation, special=False)
            if tokens[:1] == [self._prefix_id]:
                return tokens[:1], tokens[1:]
            return [self._prefix_id], tokens
        bare = context.rstrip()
        whole = self._encode(context + continuation)
        before = self._encode(bare)
        return before, whole[len(before) :]

    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], quiet: bool
    ) -> list[tuple[float, bool]]:
        """In the order of the tokens, so that a context that several share is run once."""
        scorer = self._scoring()
        rows = [(context + answer)[-self.max_length - 1 :] for context, answer in pairs]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        progress = ProgressReporter("scoring")
        for done, index in enumerate(sorted(range(len(rows)), key=rows.__getitem__)):
            answer = pairs[index][1]
            if len(answer) > self.max_length:
                raise InputError(
                    f"a continuation of {len(answer)} tokens does not fit a context of "
                    f"{self.max_length}; raise max_length"
                )
            if answer:
                found[index] = scorer.score(rows[index], len(answer))
            if not quiet:
                progress(done + 1, len(rows), "continuations")
        progress.close()
        return found

    def _start(self, llm: LLM, context: str, settings: Mapping[str, Any]) -> Any:
        asked, stop, sampling = read_settings(settings)
        length = min(ANSWER_TOKENS, self.max_length // 2) if asked is None else asked
        room = self.max_length - length
        if room < 1:
            raise InputError(
                f"an answer of {length} tokens leaves no room for a question in a context of "
                f"{self.max_length}; lower max_gen_toks"
            )
        return llm.stream(self._encode(context)[-room:], max_tokens=length, stop=stop, **sampling)

    def _scoring(self) -> ContinuationScorer:
        if self._scorer is None:
            self.close()
            executor = open_executor(self._model, self._machine, tokens=self.max_length)
            self._open.callback(executor.close)
            self._scorer = ContinuationScorer(executor, self.max_length)
        return self._scorer

    def _answering(self) -> LLM:
        if self._llm is None:
            self.close()
            self._llm = LLM(
                self._path,
                backend=self._machine.backend,
                threads=self._machine.threads,
                context=self.max_length,
                max_running=self._running,
            )
            self._open.callback(self._llm.close)
        return self._llm


def read_settings(settings: Mapping[str, Any]) -> tuple[int | None, list[str], dict[str, Any]]:
    """Longest answer (None: not told), stop strings and sampling.

    Raises InputError for what is not honoured.
    """
    rest = dict(settings)
    lengths = [rest.pop(name) for name in _LENGTHS if name in rest]
    until = rest.pop("until", None) or []
    sampled = rest.pop("do_sample", rest.get("temperature", 0.0) not in (0, None))
    unknown = sorted(rest.keys() - _SAMPLING)
    if unknown:
        raise InputError(f"generation_kwargs '{unknown[0]}' is not known here; leave it out")
    sampling = {name: value for name, value in rest.items() if value is not None}
    sampling["temperature"] = float(sampling.get("temperature", 1.0)) if sampled else 0.0
    stop = [until] if isinstance(until, str) else list(until)
    return int(lengths[0]) if lengths else None, [s for s in stop if s], sampling


def main() -> None:
    """The harness's own command line, with "coldpress" among its models."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
