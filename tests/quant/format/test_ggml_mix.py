"""Mixes of types: the rules in figures; llama.cpp's own choices are in the tests of build."""

import pytest

from quant.format.errors import RecipeError
from quant.format.ggml_mix import MIXES, ModelFacts, facts_of, file_type, mix_type

SMALL = ModelFacts(layers=32, query_groups=4, tied=False)


def names(mix: str, module: str, facts: ModelFacts = SMALL, columns: int = 4096) -> list[str]:
    """The type of `module` in each layer."""
    found = [
        mix_type(mix, f"model.layers.{i}.{module}", columns, facts) for i in range(facts.layers)
    ]
    return [str(kind) for kind in found]


def test_every_third_layer_and_the_ends_get_more_bits() -> None:
    more = [i for i, name in enumerate(names("Q4_K_M", "mlp.down_proj")) if name == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert names("Q4_K_M", "self_attn.v_proj") == names("Q4_K_M", "mlp.down_proj")
    assert set(names("Q4_K_M", "mlp.up_proj")) == {"Q4_K"}


def test_the_first_layers_of_three_bits_are_eased() -> None:
    assert names("Q3_K_M", "mlp.down_proj") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert names("Q3_K_M", "self_attn.v_proj") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert set(names("Q3_K_M", "self_attn.o_proj")) == {"Q4_K"}
    assert set(names("Q3_K_M", "self_attn.q_proj")) == {"Q3_K"}
    assert names("Q4_0", "mlp.down_proj") == ["Q4_1"] * 4 + ["Q4_0"] * 28
    assert names("Q4_K_S", "self_attn.v_proj") == ["Q5_K"] * 4 + ["Q4_K"] * 28


def test_rows_that_256_does_not_divide_get_blocks_of_32() -> None:
    assert set(names("Q4_K_M", "mlp.up_proj", columns=576)) == {"Q5_0"}
    assert set(names("Q4_K_M", "self_attn.v_proj", columns=576)) == {"Q5_0", "Q8_0"}
    assert set(names("Q3_K_M", "mlp.up_proj", columns=576)) == {"Q4_0"}
    assert set(names("Q5_K_M", "mlp.up_proj", columns=576)) == {"Q5_1"}
    assert set(names("IQ4_XS", "mlp.up_proj", columns=576)) == {"IQ4_NL"}
    assert names("Q4_0", "mlp.up_proj", columns=40) == ["None"] * 32


@pytest.mark.parametrize(
    ("mix", "tied", "columns", "table", "head"),
    [
        ("Q4_K_M", False, 4096, "Q4_K", "Q6_K"),
        ("Q4_K_M", True, 4096, "Q6_K", "Q6_K"),
        ("Q4_K_M", True, 576, "Q8_0", "Q8_0"),
        ("Q3_K_M", False, 576, "Q4_0", "Q8_0"),
        ("Q4_0", True, 4096, "Q6_K", "Q6_K"),
        ("Q4_0", True, 576, "Q8_0", "Q8_0"),
        ("Q8_0", False, 4096, "Q8_0", "Q8_0"),
    ],
)
def test_tables(mix: str, tied: bool, columns: int, table: str, head: str) -> None:
    facts = ModelFacts(layers=32, query_groups=1, tied=tied)
    assert str(mix_type(mix, "model.embed_tokens", columns, facts)) == table
    assert str(mix_type(mix, "lm_head", columns, facts)) == head


def test_models_with_few_key_heads_or_experts() -> None:
    plain = ModelFacts(layers=32, query_groups=1)
    assert set(names("Q2_K", "self_attn.v_proj")) == {"Q4_K"}
    assert set(names("Q2_K", "self_attn.v_proj", plain)) == {"Q3_K"}
    assert set(names("IQ4_XS", "self_attn.v_proj")) == {"Q5_K"}
    assert set(names("IQ4_XS", "self_attn.v_proj", plain)) == {"IQ4_XS"}
    experts = ModelFacts(layers=32, query_groups=4, experts=8)
    assert set(names("Q4_K_M", "self_attn.k_proj", experts)) == {"Q8_0"}
    assert set(names("Q4_K_M", "self_attn.v_proj", experts)) == {"Q8_0"}
    assert set(names("Q4_K_M", "self_attn.o_proj", experts)) == {"Q5_K"}
    large = ModelFacts(layers=80, query_groups=8, large=True)
    assert set(names("Q4_K_M", "self_attn.v_proj", large)) == {"Q5_K", "Q6_K"}


def test_one_type_for_all() -> None:
    assert {*names("Q4_K", "mlp.down_proj"), *names("Q4_K", "self_attn.v_proj")} == {"Q4_K"}


def test_facts_come_from_the_config() -> None:
    config = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    assert facts_of(config) == ModelFacts(80, 8)
    assert facts_of(config | {"model_type": "llama"}).large
    assert facts_of(config | {"num_local_experts": 8, "tie_word_embeddings": True}) == ModelFacts(
        80, 8, experts=8, tied=True
    )


def test_file_types_are_those_of_llama_cpp() -> None:
    gguf = pytest.importorskip("gguf")
    for mix in MIXES:
        if mix not in ("Q3_K", "Q4_K", "Q5_K"):
            assert file_type(mix) == gguf.LlamaFileType[f"MOSTLY_{mix}"], mix


def test_an_unknown_mix_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="'Q4_K_X' is not known; known are Q4_0"):
        mix_type("Q4_K_X", "lm_head", 64, SMALL)
