"""Calibration text that the model writes itself, so that no data is needed.

Source of the idea: Liu et al., "LLM-QAT: Data-Free Quantization Aware Training" (2023). Unlike the
layer loop this holds the whole model in memory, since each token needs every layer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quant.format.tensor import WeightSource
from quant.recipe import CalibrationSpec
from quant.skeleton import Skeleton, loaded

_CANDIDATES = 64
_SEQUENCES = 64

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def sample_text(
    source: WeightSource,
    skeleton: Skeleton,
    spec: CalibrationSpec,
    on_progress: Progress | None = None,
) -> npt.NDArray[np.int64]:
    """int64 [samples, tokens] sampled from the model at temperature 1 among the 64 likeliest.

    Each text starts with the beginning-of-sequence token, if the model has one, and never holds an
    end-of-sequence token. All draws come from one generator seeded with `spec.seed`.
    """
    tied = skeleton.tied_names()
    names = {name: tied.get(name, name) for name, _ in skeleton.model.named_parameters()}
    with loaded(skeleton.model, names, source, skeleton.compute_dtype):
        return _sample(skeleton.model, spec, on_progress)


def _sample(
    writer: Any, spec: CalibrationSpec, on_progress: Progress | None
) -> npt.NDArray[np.int64]:
    generator = torch.Generator().manual_seed(spec.seed)
    parts = []
    for start in range(0, spec.samples, _SEQUENCES):
        count = min(_SEQUENCES, spec.samples - start)

        def report(done: int, start: int = start, count: int = count) -> None:
            if on_progress is not None:
                total = spec.samples * spec.tokens
                on_progress(start * spec.tokens + count * done, total, "writing calibration text")

        parts.append(_write(writer, count, spec.tokens, generator, report))
    tokens: npt.NDArray[np.int64] = torch.cat(parts).numpy()
    return tokens


def _write(
    writer: Any,
    count: int,
    length: int,
    generator: torch.Generator,
    report: Callable[[int], None],
) -> torch.Tensor:
    config = writer.config.get_text_config()
    banned = _end_tokens(writer)
    first = _first_tokens(config, count, banned, generator)
    text, cache, step = first, None, first
    while text.shape[1] < length:
        output = writer(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step = _draw(output.logits[:, -1].float(), banned, generator)
        text = torch.cat([text, step], dim=1)
        report(text.shape[1])
    return text


def _first_tokens(
    config: Any, count: int, banned: list[int], generator: torch.Generator
) -> torch.Tensor:
    """[count, 1]: the beginning-of-sequence token, or else any token."""
    bos = config.bos_token_id
    if isinstance(bos, int) and bos not in banned:
        return torch.full((count, 1), bos)
    return torch.randint(config.vocab_size, (count, 1), generator=generator)


def _end_tokens(writer: Any) -> list[int]:
    found: set[int] = set()
    for config in (writer.config.get_text_config(), writer.generation_config):
        end = getattr(config, "eos_token_id", None)
        found.update(end if isinstance(end, list) else [] if end is None else [end])
    return sorted(found)


def _draw(logits: torch.Tensor, banned: list[int], generator: torch.Generator) -> torch.Tensor:
    """One token [count, 1] of each row of logits [count, vocab]."""
    logits[:, banned] = -torch.inf
    best, tokens = logits.topk(min(_CANDIDATES, logits.shape[1] - len(banned)), dim=-1)
    choice = torch.multinomial(best.softmax(dim=-1), 1, generator=generator)
    return tokens.gather(1, choice)
