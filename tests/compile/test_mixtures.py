"""Mixtures of experts as Programs: what is in them, what is refused, who says so."""

from dataclasses import replace
from typing import Any

import pytest

from compile.families import build_program
from compile.program import Expert, Moe, Program
from compile.same_program import program_differences
from quant.format.errors import InputError
from quant.format.scheme import FloatScheme, IntScheme, PerGroup, Scheme
from tests.tiny import EXPERTS, tiny_config

INT4 = IntScheme(4, True, PerGroup(32))


def program_of(family: str, *, rounded: bool = False, **options: Any) -> Program:
    return program_of_config(tiny_config(family, **options), rounded=rounded)


def program_of_config(config: dict[str, Any], *, rounded: bool = False) -> Program:
    def scheme_of(name: str) -> Scheme:
        return INT4 if rounded and ".experts." in name else FloatScheme("bfloat16")

    return build_program(config, scheme_of, lambda name: False)


def mixtures(program: Program) -> list[Moe]:
    return [op for op in program.ops if isinstance(op, Moe)]


def test_every_matrix_of_an_expert_is_a_projection_with_its_scheme() -> None:
    program = program_of("mixtral", rounded=True)
    rounded = [op for op in program.projections() if op.scheme == INT4]
    assert len(rounded) == 2 * EXPERTS * 3
    assert {op.weight for op in rounded} < program.weights().keys()
    routers = [op.weight for op in program.projections() if op.weight.endswith(".gate.weight")]
    assert routers == [f"model.layers.{n}.block_sparse_moe.gate.weight" for n in (0, 1)]


def test_layers_without_experts_have_a_plain_mlp() -> None:
    assert len(mixtures(program_of("qwen3_moe"))) == 2
    assert len(mixtures(program_of("qwen3_moe", mlp_only_layers=[1]))) == 1
    program = program_of("qwen3_moe", layers=4, decoder_sparse_step=2)
    assert [op.x for op in mixtures(program)] == ["layers.1.mlp_in", "layers.3.mlp_in"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts_per_tok": 5}, "'num_experts_per_tok' of the model's config is 5, more than"),
        ({"mlp_only_layers": ["a"]}, "'mlp_only_layers' of the model's config must be a list"),
        ({"decoder_sparse_step": 0}, "'decoder_sparse_step' of the model's config"),
        ({"num_experts": 0}, "'num_experts' of the model's config"),
    ],
)
def test_a_wrong_config_names_its_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        program_of("qwen3_moe", **options)


def test_the_count_of_experts_has_two_names() -> None:
    config = tiny_config("qwen3_moe")
    renamed = {k: v for k, v in config.items() if k != "num_experts"}
    renamed["num_local_experts"] = config["num_experts"]
    assert program_of_config(renamed) == program_of_config(config)


def test_schemes_alone_make_no_other_program() -> None:
    plain, rounded = program_of("mixtral"), program_of("mixtral", rounded=True)
    assert program_differences(plain, rounded) == []
    moe = mixtures(rounded)[0]
    first = moe.experts[0]
    swapped = Expert(replace(first.gate, out_features=1), first.up, first.down)
    other = replace(moe, experts=(swapped, *moe.experts[1:]))
    ops = tuple(other if op is moe else op for op in rounded.ops)
    differences = program_differences(plain, replace(rounded, ops=ops))
    assert differences == ["op layers.0.mixed has other experts"]
