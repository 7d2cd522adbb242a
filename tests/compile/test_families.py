"""Programs against what transformers makes of the same configs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compile.families import FAMILIES, build_program
from compile.families.rope import rope_spec
from compile.families.settings import Settings
from compile.program import (
    Attend,
    Embed,
    Linear,
    Program,
    Rope,
    RopeSpec,
    SelectRows,
    Slice,
)
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.scheme import FloatScheme, IntScheme, PerGroup, Scheme
from tests.tiny import GEMMAS, LONGROPE, tiny_config, tiny_shapes

FLOAT = FloatScheme("bfloat16")


def program_of(config: dict[str, Any], *, has_head: bool = False) -> Program:
    return build_program(config, lambda name: FLOAT, lambda name: has_head)


def rope_of(config: dict[str, Any]) -> RopeSpec:
    return next(op.rope for op in program_of(config).ops if isinstance(op, Rope))


def windows_of(config: dict[str, Any]) -> list[int | None]:
    return [op.window for op in program_of(config).ops if isinstance(op, Attend)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", [4, 2])
def test_a_program_reads_the_tensors_of_the_checkpoint(family: str, tied: bool, heads: int) -> None:
    head_dim = None if family == "phi3" else 24
    config = tiny_config(family, tied=tied, heads=heads, head_dim=head_dim)
    program = program_of(config)
    assert program.weights() == tiny_shapes(config)
    assert program.tied_embeddings == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_is_written_once_and_before_it_is_read(family: str) -> None:
    program = program_of(tiny_config(family))
    written: set[str] = set()
    for op in program.ops:
        reads = [
            getattr(op, name)
            for name in ("x", "a", "b", "q", "k", "v", "gate", "up", "logits")
            if hasattr(op, name)
        ]
        assert written.issuperset(reads)
        assert op.out not in written
        written.add(op.out)
    assert isinstance(program.ops[-2], SelectRows)


def test_each_linear_carries_the_scheme_of_its_weight() -> None:
    int4 = IntScheme(4, True, PerGroup(32))

    def scheme_of(name: str) -> Scheme:
        return int4 if "_proj" in name else FLOAT

    program = build_program(tiny_config("qwen3"), scheme_of, lambda name: False)
    linears = [op for op in program.ops if isinstance(op, Linear)]
    assert len(linears) == 14
    assert {op.scheme for op in linears} == {int4}


# Keys whose absence transformers fills with a default of the family.
OPTIONAL = (
    "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
    "rope_parameters", "tie_word_embeddings", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "hidden_activation", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "sliding_window_pattern",
    "original_max_position_embeddings",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    bare = {
        k: v
        for k, v in tiny_config(family, heads=32, hidden_size=1024, layers=30).items()
        if k not in OPTIONAL
    }
    full = AutoConfig.for_model(**bare).to_dict()
    assert program_of(bare) == program_of(full)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    LLAMA3,
    YARN,
    {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    {**YARN, "original_max_position_embeddings": 64},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
def test_rotary_factors_are_those_of_transformers(scaling: dict[str, Any], theta: float) -> None:
    config = tiny_config(head_dim=64, rope_scaling=scaling, rope_theta=theta, max_positions=131_072)
    spec = rope_of(config)
    theirs, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
        AutoConfig.for_model(**config), "cpu"
    )
    assert spec.factors is not None
    ours = theta ** (-np.arange(0, 64, 2) / 64) / np.array(spec.factors)
    # They round the power, the division and the blend to float32, some eight steps; an error of
    # the ramp, up to four units in the last place of 1, weighs `factor` times in a slowed pair.
    rtol = (8 + 4 * scaling["factor"]) * 2.0**-24
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=rtol)
    assert math.isclose(spec.attention_factor, attention_factor, rel_tol=1e-12)


def test_older_configs_say_the_same() -> None:
    config = tiny_config(rope_scaling=LLAMA3, rope_theta=500_000.0)
    older = dict(config)
    del older["rope_parameters"]
    older["rope_theta"] = 500_000.0
    older["rope_scaling"] = LLAMA3
    assert program_of(older) == program_of(config)
    older["rope_scaling"] = {**LLAMA3, "type": "llama3"}
    del older["rope_scaling"]["rope_type"]
    assert program_of(older) == program_of(config)


def test_explicit_factors_are_kept() -> None:
    factors = [1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    scaling = {"rope_type": "factors", "factors": factors, "attention_factor": 1.1}
    spec = rope_of(tiny_config(rope_scaling=scaling))
    assert (spec.factors, spec.attention_factor) == (tuple(factors), 1.1)
    with pytest.raises(InputError, match="list of 8 numbers"):
        rope_of(tiny_config(rope_scaling={**scaling, "factors": factors[:3]}))


@settings(max_examples=40)
@given(
    layers=st.integers(1, 6),
    window=st.none() | st.integers(1, 99),
    use=st.booleans(),
    first=st.integers(0, 7),
    family=st.sampled_from(["qwen2", "qwen3", "mistral"]),
)
def test_windows_are_those_of_transformers(
    layers: int, window: int | None, use: bool, first: int, family: str
) -> None:
    config = tiny_config(
        family, layers=layers, sliding_window=window, use_sliding_window=use,
        max_window_layers=first,
    )  # fmt: skip
    theirs = AutoConfig.for_model(**config)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * layers
    expected = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    assert windows_of(config) == expected
    if family != "mistral":
        assert windows_of({**config, "layer_types": kinds}) == expected


def test_layer_types_are_checked() -> None:
    config = tiny_config("qwen3", sliding_window=8, use_sliding_window=True)
    both = ["sliding_attention", "full_attention"]
    assert windows_of({**config, "layer_types": both}) == [8, None]
    with pytest.raises(InputError, match="list of 2 names"):
        windows_of({**config, "layer_types": both[:1]})
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        windows_of({**config, "layer_types": ["chunked_attention"] * 2})
    with pytest.raises(InputError, match="none is set"):
        windows_of({**config, "layer_types": both, "use_sliding_window": False})


@pytest.mark.parametrize("kind", ["dynamic", "mrope"])
def test_scalings_that_depend_on_the_length_are_refused(kind: str) -> None:
    config = Settings({"rope_scaling": {"type": kind, "factor": 2.0}}, {})
    with pytest.raises(UnsupportedModelError, match=kind):
        rope_spec(config, 64, 4096)


@settings(max_examples=20)
@given(
    layers=st.integers(1, 8),
    pattern=st.integers(1, 4),
    explicit=st.booleans(),
    family=st.sampled_from(GEMMAS),
)
def test_patterns_of_windows_are_those_of_transformers(
    layers: int, pattern: int, explicit: bool, family: str
) -> None:
    config = tiny_config(family, layers=layers, sliding_window_pattern=pattern)
    theirs = AutoConfig.for_model(**config)
    if explicit:
        config["layer_types"] = theirs.layer_types
    expected = [9 if kind == "sliding_attention" else None for kind in theirs.layer_types]
    assert windows_of({**config, "sliding_window": 9}) == expected


@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 34.0), ("float32", 33.94112549695428)])
def test_embeddings_grow_by_a_root_that_is_rounded_as_the_weights_are(
    dtype: str, scale: float
) -> None:
    """transformers keeps it in the type of the table: 1152 is Gemma 3 1B's width."""
    config = tiny_config("gemma3_text", hidden_size=1152, dtype=dtype)
    embed = program_of(config).ops[0]
    assert isinstance(embed, Embed) and embed.scale == float(np.float32(scale))
    theirs = torch.tensor(1152**0.5).to(getattr(torch, dtype))
    assert embed.scale == theirs.item()


@pytest.mark.parametrize("family", GEMMAS)
def test_gemma_norms_are_offset_from_one(family: str) -> None:
    offsets = program_of(tiny_config(family)).norm_offsets()
    assert set(offsets.values()) == {1.0}
    assert len(offsets) == {"gemma2": 9, "gemma3_text": 13}[family]
    assert set(program_of(tiny_config("llama")).norm_offsets().values()) == {0.0}


def test_layers_with_a_window_have_a_rotation_of_their_own() -> None:
    config = tiny_config("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0})
    program = program_of(config)
    ropes = [op.rope for op in program.ops if isinstance(op, Rope)]
    local, whole = RopeSpec(16, 100.0), RopeSpec(16, 10_000.0, (8.0,) * 8, scaling="linear")
    assert ropes == [local, local, whole, whole]
    older = {**config, "rope_theta": 10_000.0, "rope_local_base_freq": 100.0}
    older["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    del older["rope_parameters"]
    assert program_of(older) == program
    with pytest.raises(InputError, match="a table for each of full_attention, sliding_attention"):
        program_of({**config, "rope_parameters": {"rope_theta": 10_000.0}})


def test_what_no_executor_computes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="use_bidirectional_attention"):
        program_of(tiny_config("gemma3_text", use_bidirectional_attention=True))
    with pytest.raises(UnsupportedModelError, match="attn_logit_softcapping"):
        program_of(tiny_config("gemma3_text", attn_logit_softcapping=50.0))


def test_a_fused_matrix_is_cut_into_what_it_stands_for() -> None:
    program = program_of(tiny_config("phi3", kv_heads=1))
    slices = {op.out: (op.x, op.start, op.size) for op in program.ops if isinstance(op, Slice)}
    assert slices["layers.1.q"] == ("layers.1.qkv", 0, 64)
    assert slices["layers.1.k"] == ("layers.1.qkv", 64, 16)
    assert slices["layers.1.v"] == ("layers.1.qkv", 80, 16)
    assert slices["layers.1.gate"] == ("layers.1.gate_up", 0, 128)
    assert slices["layers.1.up"] == ("layers.1.gate_up", 128, 128)


@pytest.mark.parametrize("attention_factor", [None, 1.5])
def test_longrope_is_that_of_transformers_within_the_trained_length(
    attention_factor: float | None,
) -> None:
    scaling = {**LONGROPE, "attention_factor": attention_factor}
    config = tiny_config("phi3", rope_scaling=scaling)
    program, spec = program_of(config), rope_of(config)
    for older in ("su", "yarn"):
        renamed = {**scaling, "rope_type": older}
        assert program_of(tiny_config("phi3", rope_scaling=renamed)) == program
    assert program.sizes.max_positions == 64 < config["max_position_embeddings"]
    assert (spec.dimension, spec.long_factors) == (12, tuple(LONGROPE["long_factor"]))
    theirs = AutoConfig.for_model(**config)
    for length, factors in ((64, spec.factors), (65, spec.long_factors)):
        frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=length)
        assert factors is not None
        ours = 10_000.0 ** (-np.arange(0, 12, 2) / 12) / np.array(factors)
        np.testing.assert_allclose(frequencies.numpy(), ours, rtol=8 * 2.0**-24)
        assert math.isclose(spec.attention_factor, factor, rel_tol=1e-12)
    short = program_of({**config, "max_position_embeddings": 48})
    assert short.sizes.max_positions == 48


def test_a_rotation_of_an_odd_part_of_a_head_is_refused() -> None:
    scaling = {"partial_rotary_factor": 0.7}
    with pytest.raises(InputError, match="rotates 11 of a head's 16 elements"):
        program_of(tiny_config("phi3", rope_scaling=scaling))
    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor"):
        program_of(tiny_config("llama", rope_scaling=scaling))


def test_a_stored_head_is_used_even_when_the_config_ties_it() -> None:
    config = tiny_config(tied=True)
    assert "lm_head.weight" in program_of(config, has_head=True).weights()
    assert "lm_head.weight" not in program_of(config).weights()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**400), st.floats(), st.text(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip
ROPE_KEYS = [
    *LLAMA3,
    *YARN,
    *LONGROPE,
    "rope_theta",
    "type",
    "attention_factor",
    "beta_fast",
    "truncate",
]


@settings(max_examples=150)
@given(
    family=st.sampled_from(list(FAMILIES)),
    changes=st.dictionaries(
        st.sampled_from([*tiny_config("qwen3"), *tiny_config("gemma2"), *OPTIONAL]),
        JUNK,
        max_size=3,
    ),
    rope_type=st.sampled_from(["default", "linear", "llama3", "yarn", "factors", "longrope"]),
    rope=st.dictionaries(st.sampled_from(ROPE_KEYS), JUNK, max_size=3),
)
def test_no_config_ends_in_anything_but_a_sentence(
    family: str, changes: dict[str, Any], rope_type: str, rope: dict[str, Any]
) -> None:
    config = tiny_config(family, rope_scaling={**LLAMA3, "rope_type": rope_type, **rope}) | changes
    try:
        program = program_of(config)
    except InputError as error:
        assert len(str(error)) > 20
    else:
        assert all(math.isfinite(f) for f in rope_of(config).factors or ())
        assert program.weights()
