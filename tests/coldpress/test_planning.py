"""Preflight: sizes are those of the file to come, and servers are judged by what they read."""

from pathlib import Path

import pytest

from coldpress.cli import run
from coldpress.planning import plan_quantize
from coldpress.servers import judge_servers
from quant.format.containers import Format
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerToken,
    Scheme,
)
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
from tests.coldpress.conftest import Run
from tests.tiny import tiny_checkpoint

INT4 = IntScheme(4, True, PerGroup(64))
Q4_0 = IntScheme(4, True, PerGroup(32), ggml_type="Q4_0")
FP8 = ("algorithm=rtn", "scheme.type=fp8", "scheme.activations=fp8")
LINEAR = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("rtn-w4a16", []),
        ("rtn-w4a16-asym", []),
        ("w8a16", ["algorithm=rtn"]),
        ("rtn-w4a16", ["scheme.num_bits=3", "ignore=[lm_head, '*.down_proj']"]),
        ("rtn-w4a16", ["format=gptq"]),
        ("rtn-w4a16-asym", ["format=awq"]),
        ("rtn-w4a16", ["scheme.type=nvfp4"]),
        ("rtn-w4a16", ["scheme.type=mxfp4"]),
        ("rtn-w4a16", [*FP8, "scheme.group_size=channel"]),
        ("rtn-w4a16", ["scheme.type=fp8", "scheme.group_size=block"]),
    ],
)
def test_the_file_has_the_size_that_was_planned(
    recipe: str, overrides: list[str], tmp_path: Path
) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2", tied=bool(overrides))
    planned = plan_quantize(model, recipe, overrides)
    quantize_checkpoint(model, tmp_path / "out", load_recipe(recipe, overrides))
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert planned["file_bytes"] == written
    assert planned["disk_bytes"] >= written


def test_shards_are_counted_each(tmp_path: Path) -> None:
    import numpy as np

    from quant.format.safetensors_writer import ShardedWriter, file_sizes

    rng = np.random.default_rng(1)
    arrays = {f"t{i}": np.zeros(rng.integers(1, 50, i % 3 + 1), np.float32) for i in range(40)}
    with ShardedWriter(tmp_path, max_shard_bytes=5000) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
    described = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.safetensors"))]
    assert len(sizes) > 2 and file_sizes(described, max_shard_bytes=5000) == sizes


def test_plan_tells_sizes_servers_and_reasons(tiny: Path, run_json: Run) -> None:
    value = run_json("plan", tiny, "--recipe", "rtn-w4a16", "--set", "scheme.group_size=32")
    assert {"file_bytes", "disk_bytes", "peak_memory_bytes", "servers", "notes"} <= set(value)
    assert {server["server"]: server["loads"] for server in value["servers"]} == {
        "vLLM": True,
        "transformers": True,
        "llama.cpp": True,
        "coldpress serve": True,
    }
    assert all(server["reason"] for server in value["servers"])


def test_plan_shows_servers_to_people(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["--set", "scheme.num_bits=3", "--set", "scheme.group_size=32"]
    assert run(["plan", str(tiny), "--recipe", "rtn-w4a16-asym", *odd]) == 0
    assert "not of 3" in capsys.readouterr().out


def test_quantize_begins_with_the_same_check(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["quantize", str(tiny), "-o", str(tmp_path / "out"), "--recipe", "rtn-w4a16-asym"]
    assert run([*args, "--set", "scheme.num_bits=3"]) == 0
    err = capsys.readouterr().err
    assert "of weights will be written" in err and "vLLM will not load it" in err
    assert run([*args[:-1], "rtn-w4a16", "--set", "ignore=[a.*, b.*]", "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert "'a.*'" in err and "'b.*'" in err, "every pattern that matches nothing"


def loads(format_name: Format, scheme: Scheme, width: int = 128, **others: Scheme) -> set[str]:
    schemes = {LINEAR: scheme, **others}
    shapes = dict.fromkeys(schemes, (128, width))
    verdicts = judge_servers(format_name, schemes, shapes)
    assert all(verdict.reason for verdict in verdicts)
    return {verdict.server for verdict in verdicts if verdict.loads}


ALL = {"vLLM", "transformers", "llama.cpp", "coldpress serve"}
DYNAMIC8 = ActivationScheme("int8", PerToken())


@pytest.mark.parametrize(
    ("format_name", "scheme", "expected"),
    [
        ("compressed-tensors", INT4, ALL),
        ("compressed-tensors", IntScheme(3, True, PerGroup(64)), ALL),
        ("compressed-tensors", IntScheme(3, False, PerGroup(64)), ALL - {"vLLM"}),
        ("compressed-tensors", IntScheme(4, True, PerGroup(16)), ALL - {"vLLM", "llama.cpp"}),
        ("compressed-tensors", IntScheme(8, True, PerChannel(), DYNAMIC8), ALL),
        ("compressed-tensors", CodebookScheme("e4m3", PerChannel()), ALL - {"llama.cpp"}),
        ("fp8", CodebookScheme("e4m3", PerBlock(128, 128)), ALL - {"llama.cpp"}),
        ("gptq", INT4, ALL),
        ("gptq", IntScheme(4, False, PerGroup(128)), ALL - {"vLLM"}),
        ("gptq_v2", IntScheme(3, True, PerGroup(128)), ALL - {"vLLM"}),
        ("gptq", IntScheme(4, True, PerGroup(16)), ALL - {"vLLM", "llama.cpp"}),
        ("awq", IntScheme(4, False, PerGroup(128)), ALL),
        ("ggml", Q4_0, {"llama.cpp", "coldpress serve"}),
    ],
)
def test_servers(format_name: Format, scheme: Scheme, expected: set[str]) -> None:
    assert loads(format_name, scheme) == expected


def test_fused_linears_share_a_scheme() -> None:
    parts = {f"model.layers.0.self_attn.{n}_proj": INT4 for n in "qkv"}
    shapes = dict.fromkeys(parts, (64, 64))
    assert judge_servers("compressed-tensors", parts, shapes)[0].loads
    split: dict[str, Scheme] = {**parts, "model.layers.0.self_attn.v_proj": FloatScheme("bfloat16")}
    vllm = judge_servers("compressed-tensors", split, shapes)[0]
    assert not vllm.loads and "v_proj" in vllm.reason and "differ" in vllm.reason
    # Down projections of two layers are never one matrix.
    free: dict[str, Scheme] = {LINEAR: INT4, LINEAR.replace("0", "1"): FloatScheme("bfloat16")}
    assert judge_servers("compressed-tensors", free, dict.fromkeys(free, (64, 64)))[0].loads


def test_experts_must_be_alike() -> None:
    scheme, other = IntScheme(4, True, PerGroup(32)), IntScheme(8, True, PerGroup(32))
    alike = {f"model.layers.0.mlp.experts.{n}.up_proj": scheme for n in range(3)}
    mixed = {**alike, "model.layers.0.mlp.experts.2.up_proj": other}
    shapes = dict.fromkeys(alike, (64, 64))
    verdicts = {v.server: v for v in judge_servers("compressed-tensors", alike, shapes)}
    assert all(verdict.loads for verdict in verdicts.values())
    vllm, _, llama_cpp, ours = judge_servers("compressed-tensors", mixed, shapes)
    assert not vllm.loads and "all model.layers.0.mlp.experts.*" in vllm.reason
    assert not llama_cpp.loads and "all model.layers.0.mlp.experts.*.up_proj in" in llama_cpp.reason
    assert ours.loads
    beside: dict[str, Scheme] = {**alike, "model.layers.0.self_attn.o_proj": other}
    vllm = judge_servers("compressed-tensors", beside, dict.fromkeys(beside, (64, 64)))[0]
    assert not vllm.loads and "under the target 'Linear'" in vllm.reason


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixtures_are_built_and_served(family: str, tmp_path: Path, run_json: Run) -> None:
    model = tiny_checkpoint(tmp_path / "model", family)
    small = ("--set", "scheme.group_size=32")
    servers = run_json("plan", model, "--recipe", "rtn-w4a16", *small)["servers"]
    assert {s["server"]: s["loads"] for s in servers if s["server"] != "vLLM"} == {
        "transformers": True,
        "llama.cpp": True,
        "coldpress serve": True,
    }


def test_a_family_that_is_not_ours_is_left_to_others() -> None:
    schemes = {"model.layers.0.mlp.experts.0.up_proj": IntScheme(4, True, PerGroup(32))}
    shapes = dict.fromkeys(schemes, (64, 64))
    verdicts = judge_servers("compressed-tensors", schemes, shapes, family="olmoe")
    assert [verdict.loads for verdict in verdicts] == [True, True, False, False]
    assert all("olmoe" in verdict.reason for verdict in verdicts[2:])


def test_a_quantized_token_table_is_for_our_own_server() -> None:
    table, head = {"model.embed_tokens": INT4}, {"lm_head": INT4}
    for schemes, expected in (
        ({LINEAR: INT4} | table, {"coldpress serve"}),
        ({LINEAR: INT4} | head, {"coldpress serve", "vLLM", "transformers"}),
    ):
        verdicts = judge_servers("compressed-tensors", schemes, dict.fromkeys(schemes, (64, 64)))
        assert expected == {v.server for v in verdicts if v.loads} - {"llama.cpp"}
        for verdict in verdicts[:2]:
            assert verdict.loads or "embeddings=null" in verdict.reason


def test_blocks_that_would_begin_within_a_block() -> None:
    """Fine-grained FP8 may hold what transformers loads, and what vLLM cannot stack."""
    scheme = CodebookScheme(
        "e4m3", PerBlock(128, 128), activation=ActivationScheme("e4m3", PerGroup(128))
    )
    for rows, expected in ((64, False), (128, True)):
        shapes = {"l.q_proj": (256, 256), "l.k_proj": (rows, 256), "l.v_proj": (rows, 256)}
        vllm, transformers, *_ = judge_servers("fp8", dict.fromkeys(shapes, scheme), shapes)
        assert (vllm.loads, transformers.loads) == (expected, True)
        assert expected or "64 outputs of l.k_proj" in vllm.reason
