"""Commands that read a model, on a tiny one."""

import math
from pathlib import Path

import click
import pytest

from coldpress.cli import run
from coldpress.gates import METRICS
from coldpress.options import parse_size
from compile.manifest import check_files, read_manifest
from tests.coldpress.conftest import Run
from tests.tiny import tiny_checkpoint

Capture = pytest.CaptureFixture[str]


def test_eval_prints_the_documented_json(
    tiny: Path, tiny_gguf: Path, text_file: Path, run_json: Run
) -> None:
    value = run_json("eval", tiny_gguf, "--text", text_file, "--baseline", tiny, "--window", 64)
    assert {"perplexity", "tokens", "kld", "top1", "ppl_ratio", "bits_per_weight", "bytes"} <= set(
        value
    )
    assert {"mean", "se", "median", "p90", "p95", "p99", "p999", "max"} == set(value["kld"])
    assert value["model"] == tiny_gguf.name and value["baseline"] == tiny.name
    assert {"rms", "mean", "se"} <= set(value["delta_p"])
    assert sum(value["kld_histogram"]["counts"]) == value["tokens"]
    for metric, (low, high) in value["intervals"].items():
        path = METRICS[metric]
        found = value[path[0]] if len(path) == 1 else value[path[0]][path[1]]
        assert (low is None or low <= found) and (high is None or found <= high)
    assert value["protocol"] == "paper" and value["confidence"] == 0.95
    assert set(value["top1"]) == {"mean", "se"}
    assert value["tokens"] % 63 == 0
    assert value["bytes"] == (tiny_gguf / "model.gguf").stat().st_size
    assert value["ppl_ratio"] == pytest.approx(value["perplexity"] / value["baseline_perplexity"])
    # Eight bits lose something, but not much.
    assert 0 < value["kld"]["mean"] < 0.01


def test_eval_follows_llama_cpp_when_asked(tiny: Path, text_file: Path, run_json: Run) -> None:
    args = ["eval", tiny, "--text", text_file, "--protocol", "llama.cpp"]
    value = run_json(*args, "--window", 64)
    assert value["tokens"] % 31 == 0 and value["protocol"] == "llama.cpp"
    assert value["bos_id"] is None, "this tokenizer begins texts with nothing"
    assert run_json(*args)["window"] == 256, "the context of the model"


def test_gates_are_in_the_json(
    tiny: Path, tiny_gguf: Path, text_file: Path, run_json: Run, capsys: Capture
) -> None:
    args = ["eval", tiny_gguf, "--text", text_file, "--baseline", tiny, "--window", 64]
    figures = run_json(*args)
    low, high = figures["intervals"]["kld"]
    limits = {
        "holds": high * 1.01,
        "fails": low * 0.99,
        "undecided": figures["kld"]["mean"] * 1.001,
    }
    gates = [part for limit in limits.values() for part in ("--gate", f"kld<={limit!r}")]
    value = run_json(*args, *gates, code=1)
    assert [gate["verdict"] for gate in value["gates"]] == list(limits)
    for gate in value["gates"]:
        assert gate["estimate"] == figures["kld"]["mean"] and gate["interval"] == [low, high]
    assert value["gates"][2]["more_tokens"] > 0 and "more tokens" in value["gates"][2]["sentence"]
    assert run([*map(str, args), *gates]) == 1
    captured = capsys.readouterr()
    assert "is undecided" in captured.err and "undecided" in captured.out
    run_json(*args, *gates[:2])


def test_eval_agrees_with_the_oracle(tiny: Path, text_file: Path, run_json: Run) -> None:
    args = ["eval", tiny, "--text", text_file, "--window", 64, "--max-tokens", 256]
    cpu, torch = run_json(*args), run_json(*args, "--backend", "torch")
    # Losses differ by rounding in float32 alone.
    assert math.log(cpu["perplexity"]) == pytest.approx(math.log(torch["perplexity"]), abs=1e-4)
    assert cpu["tokens"] == torch["tokens"] == 4 * 63


def test_a_missed_gate_still_prints_the_figures(
    tiny: Path, text_file: Path, run_json: Run, capsys: Capture
) -> None:
    args = ["eval", tiny, "--text", text_file, "--window", 64]
    value = run_json(*args, "--gate", "perplexity<1", code=1)
    assert value["perplexity"] > 1
    assert run([*map(str, args), "--gate", "perplexity<1"]) == 1
    assert "perplexity<1 (measured" in capsys.readouterr().err
    run_json(*args, "--gate", "perplexity>1", "--gate", "bytes>10")


def test_eval_refuses_a_text_shorter_than_a_window(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("two words")
    assert run(["eval", str(tiny), "--text", str(path), "--window", "64"]) == 2


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00"])
def test_eval_refuses_what_is_no_text(
    content: bytes, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert run(["eval", str(tiny), "--text", str(path)]) == 2
    assert "bad.txt" in capsys.readouterr().err


def test_bench_prints_the_documented_json(tiny_gguf: Path, run_json: Run) -> None:
    value = run_json(
        *("bench", tiny_gguf, "--concurrency", "1,3", "--prompt-tokens", 20),
        *("--output-tokens", 5, "--threads", 1),
    )
    assert set(value) == {"model", "threads", "limits", "runs", "resident_bytes"}
    assert [one["concurrency"] for one in value["runs"]] == [1, 3]
    for one in value["runs"]:
        assert {"prefill_tokens_per_second", "decode_tokens_per_second", "ttft_ms", "tpot_ms"} <= (
            set(one)
        )
        assert one["ttft_ms"]["p50"] <= one["ttft_ms"]["p99"]
        assert one["decode_tokens_per_second"] > 0
    assert value["threads"] == 1
    limits = value["limits"]
    assert 0.9 < limits["held_bytes"] / limits["weight_bytes"] < 1.1, "blocks stay blocks"
    assert min(limits["read_bytes_per_second"], limits["int8_operations_per_second"]) > 0
    for one in value["runs"]:
        for phase in ("prefill", "decode"):
            fractions = one[f"{phase}_fractions"]
            assert set(fractions) == {"bandwidth", "int8"} and min(fractions.values()) > 0


def test_a_profile_says_where_every_step_went(tiny_gguf: Path, run_json: Run) -> None:
    sizes = ("--concurrency", "1,3", "--prompt-tokens", 20, "--output-tokens", 5)
    value = run_json("bench", tiny_gguf, *sizes, "--threads", 1, "--profile")
    assert len(value["profile"]) == 2
    for run_, ops in zip(value["runs"], value["profile"], strict=True):
        seconds = {each["op"]: each for each in ops}
        # Row operations that run as one are named together.
        parts = {part for name in seconds for part in name.split(" + ")}
        assert {"attention", "norm", "int8 by int8", "embed"} <= parts
        assert all(each["prefill_seconds"] > 0 for each in ops if each["op"] != "softcap")
        tokens = run_["concurrency"] * 5
        decoding = sum(each["decode_seconds"] for each in ops)
        assert 0 < decoding < tokens / run_["decode_tokens_per_second"]


def test_a_profile_is_shown_and_is_for_our_own_kernels(
    tiny: Path, tiny_gguf: Path, capsys: Capture
) -> None:
    sizes = ["--concurrency", "2", "--prompt-tokens", "9", "--output-tokens", "3", "--profile"]
    assert run(["bench", str(tiny_gguf), *sizes]) == 0
    assert "of decoding" in capsys.readouterr().out
    assert run(["bench", str(tiny), *sizes, "--backend", "torch"]) == 2
    assert "leave --profile out" in capsys.readouterr().err


def test_bench_refuses_what_the_context_cannot_hold(tiny: Path, capsys: Capture) -> None:
    assert run(["bench", str(tiny), "--prompt-tokens", "200", "--output-tokens", "100"]) == 2
    assert "200 + 100" in capsys.readouterr().err


def test_inspect_counts_every_tensor(tiny: Path, tiny_gguf: Path, run_json: Run) -> None:
    value, built = run_json("inspect", tiny), run_json("inspect", tiny_gguf)
    assert value["parameters"] == built["parameters"]
    assert sum(value["tensors_by_scheme"].values()) == len(value["tensors"])
    stored = sum(tensor["bytes"] for tensor in value["tensors"])
    assert 0 < value["bytes"] - stored < 10_000, "all but the header is accounted for"
    assert built["manifest"]["kind"] == "gguf"
    matrices = sum(len(tensor["shape"]) == 2 for tensor in value["tensors"])
    assert sum(value["matrices_in_memory"].values()) == matrices
    assert built["matrices_in_memory"] == {"8-bit integers": matrices - 2, "bfloat16": 2}


def test_plan_build_is_what_build_makes(tiny: Path, tiny_gguf: Path, run_json: Run) -> None:
    value = run_json("plan", tiny, "--target", "gguf:q8_0")
    assert value["bytes"] == (tiny_gguf / "model.gguf").stat().st_size
    assert all(tensor["reason"] for tensor in value["tensors"])


def test_plan_wants_one_question(tiny: Path) -> None:
    assert run(["plan", str(tiny)]) == 2
    assert run(["plan", str(tiny), "--target", "gguf", "--recipe", "x"]) == 2


def test_run_answers_once(tiny: Path, tiny_gguf: Path, run_json: Run, capsys: Capture) -> None:
    value = run_json("run", tiny_gguf, "the press", "--raw", "--max-tokens", 5)
    assert value["completion_tokens"] <= 5 and value["prompt_tokens"] > 0
    assert run(["run", str(tiny_gguf), "the press", "--raw", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == value["text"] + "\n"


def test_run_reads_its_prompt_from_a_pipe(
    tiny_gguf: Path, run_json: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    given = run_json("run", tiny_gguf, "the press", "--max-tokens", 4)
    monkeypatch.setattr("sys.stdin", io.StringIO("the press"))
    assert run_json("run", tiny_gguf, "--max-tokens", 4)["text"] == given["text"]


def test_run_refuses_an_empty_pipe(
    tiny_gguf: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run(["run", str(tiny_gguf)]) == 2
    assert "give a PROMPT" in capsys.readouterr().err


def test_run_refuses_a_prompt_longer_than_the_context(tiny: Path, capsys: Capture) -> None:
    assert run(["run", str(tiny), "press " * 400]) == 2
    err = capsys.readouterr().err
    assert "256" in err and len(err.splitlines()) == 1


def test_build_makes_a_whole_artifact(tiny: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_gguf)
    assert check_files(tiny_gguf, manifest) == []
    assert {"model.gguf", "tokenizer.json", "generation_config.json"} <= set(manifest.files)
    assert list(manifest.parents[0]["files"]) and manifest.parents[0]["name"] == tiny.name
    again = tmp_path / "again"
    assert run(["build", str(tiny), "-o", str(again), "--target", "gguf:q8_0"]) == 0
    for path in tiny_gguf.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_build_replaces_only_its_own_work(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    args = ["build", str(tiny), "-o", str(out), "--target", "gguf"]
    assert run(args) == 0
    assert run(args) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*args, "--overwrite"]) == 0
    (out / "manifest.json").unlink()
    assert run([*args, "--overwrite"]) == 2
    assert "not replaced" in capsys.readouterr().err
    assert (out / "model.gguf").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["eval", "{missing}", "--text", "{text}"],
        ["bench", "{missing}"],
        ["inspect", "{missing}"],
        ["run", "{missing}", "hello"],
        ["serve", "{missing}"],
        ["build", "{missing}", "-o", "{out}", "--target", "gguf"],
        ["plan", "{missing}", "--target", "gguf"],
    ],
)
def test_a_missing_model_is_one_sentence(
    args: list[str], text_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    known = {"missing": tmp_path / "missing", "text": text_file, "out": tmp_path / "out"}
    assert run([part.format(**known) for part in args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "missing" in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_verify_passes_what_build_made(tiny: Path, tiny_gguf: Path, run_json: Run) -> None:
    value = run_json("verify", tiny_gguf)
    assert value["passed"] and value["tensors"] == []
    value = run_json("verify", tiny_gguf, "--against", tiny)
    assert value["passed"] and value["logits"]["tokens"] > 0
    assert run_json("verify", tiny_gguf, "--against", tiny, "--no-logits")["logits"] is None


def test_verify_names_the_file_that_changed(
    tiny: Path, tmp_path: Path, run_json: Run, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert run(["build", str(tiny), "-o", str(out), "--target", "gguf"]) == 0
    damaged = bytearray((out / "model.gguf").read_bytes())
    damaged[-1] ^= 1
    (out / "model.gguf").write_bytes(damaged)
    assert run_json("verify", out, code=1)["file_problems"][0]["path"] == "model.gguf"
    assert run(["verify", str(out)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "model.gguf" in err


def test_verify_tells_another_model(tiny_gguf: Path, tmp_path: Path, run_json: Run) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    value = run_json("verify", tiny_gguf, "--against", other, code=1)
    assert not value["passed"] and value["failures"]


def test_verify_without_anything_to_check_against(tiny: Path) -> None:
    assert run(["verify", str(tiny)]) == 2


def test_build_is_gated_against_its_checkpoint(
    tiny: Path, text_file: Path, tmp_path: Path, run_json: Run
) -> None:
    args = ["build", tiny, "--target", "gguf:q4_0", "--gate-text", text_file]
    passed = run_json(*args, "-o", tmp_path / "a", "--gate", "kld<=10")
    assert 0 < passed["evaluation"]["kld"]["mean"] < 10
    assert passed["evaluation"]["window"] == 256, "the context of the model"
    missed = run_json(*args, "-o", tmp_path / "b", "--gate", "kld<=1e-9", code=1)
    assert [one["gates"][0]["verdict"] for one in (passed, missed)] == ["holds", "fails"]
    assert missed["evaluation"] == passed["evaluation"]
    assert read_manifest(tmp_path / "b").evaluation == passed["evaluation"]


def test_a_chat_goes_on_after_a_message_that_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    lines = iter(["the press", "press " * 400, "one, two"])

    def typed(_prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run(["run", str(tiny), "--max-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) >= 3
    assert "maximum context length is 256" in err


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512_000_000), ("1.5 gb", 1_500_000_000), ("77", 77)]
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    context = click.Context(click.Command("x"))
    assert parse_size(context, click.Option(["--x"]), text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "2GiB", "1 2"])
def test_what_is_no_size_is_wrong_usage(text: str, tiny: Path) -> None:
    assert run(["serve", str(tiny), "--kv-cache", text]) == 2
