"""The command line's contract: help, exit codes, one sentence for mistakes, clean stdout."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest

from coldpress import cli
from coldpress.cli import COMMANDS, run
from quant.format.errors import CheckFailedError, ColdpressError, InputError, MissingExtraError
from runtime.engine.request import RequestError

Capture = pytest.CaptureFixture[str]


def test_help_names_every_command(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_takes_json(name: str, capsys: Capture) -> None:
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"coldpress {name}" in out
    assert "--json" in out
    module = import_module(f"coldpress.commands.{name}")
    for param in module.command.params:
        if isinstance(param, click.Option) and not param.is_flag and param.default is None:
            assert param.help, f"{name} {param.name} has neither a help text nor a default to show"


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("coldpress, version ")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["press"], "press"),
        (["eval"], "ARTIFACT"),
        (["eval", "x"], "--text"),
        (["eval", "x", "--text", "y", "--window", "1"], "--window"),
        (["bench", "x", "--concurrency", "1,none"], "1,none"),
        (["build", "x", "-o", "y"], "--target"),
        (["quantize", "x", "-o", "y"], "--recipe"),
        (["serve", "x", "--port", "a"], "--port"),
        (["verify", "x", "y", "z"], "y z"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    args: list[str], word: str, capsys: Capture
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and word in err
    assert len(err.splitlines()) == 1


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (InputError("the key 'bits' is unknown; remove it"), 2, "the key 'bits' is unknown"),
        (
            MissingExtraError("quantizing", "torch", "quantize"),
            2,
            "quantizing needs the package 'torch'",
        ),
        (RequestError("the prompt has 9 tokens, the context 8"), 2, "the prompt has 9 tokens"),
        (CheckFailedError("gate not met: kld<=0.1"), 1, "gate not met"),
        (ColdpressError("a shard was lost"), 3, "a shard was lost"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 2, "a/b: No such"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 2, "out: No space left"),
    ],
)
def test_a_known_failure_is_one_sentence(
    error: Exception, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(cli.cli, "invoke", fail_with(error))
    assert run(["demo"]) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"error: {sentence}")


def test_an_unknown_failure_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(cli.cli, "invoke", fail_with(KeyError("lost")))
    assert run(["demo"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and "KeyError: 'lost'" in err
    assert "this is a bug in coldpress" in err.splitlines()[-1]


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cli.cli, "invoke", fail_with(KeyboardInterrupt()))
    assert run(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("place", ["before", "after"])
def test_json_mode_reports_an_error_as_one_object(place: str, capsys: Capture) -> None:
    args = ["eval", "nowhere", "--text", "nothing.txt"]
    assert run(["--json", *args] if place == "before" else [*args, "--json"]) == 2
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["exit_code"] == 2 and "nothing.txt" in value["error"]
    assert err == f"error: {value['error']}\n"


@pytest.mark.parametrize("card", ["sm90", "sm100", "sm91"])
def test_a_card_without_engines_is_refused_in_words(
    card: str, tmp_path: Path, capsys: Capture
) -> None:
    target = f"tensorrt:{card}"
    assert run(["build", str(tmp_path), "-o", str(tmp_path / "o"), "--target", target]) == 2
    assert card in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_unknown_target_names_the_known_ones(tmp_path: Path, capsys: Capture) -> None:
    assert run(["build", str(tmp_path), "-o", str(tmp_path / "o"), "--target", "zip"]) == 2
    err = capsys.readouterr().err
    assert "zip" in err and "gguf" in err


@pytest.mark.parametrize(
    "args",
    [
        ["quantize", "{model}", "-o", "{out}", "--recipe", "w4a16", "--gate", "kld"],
        ["eval", "{model}", "--text", "{text}", "--gate", "kld<=0.1"],
    ],
)
def test_gates_are_read_before_anything_is_done(
    args: list[str], tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    known = {"model": tmp_path / "model", "out": tmp_path / "out", "text": text}
    assert run([part.format(**known) for part in args]) == 2
    assert "gate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_early_is_no_bug() -> None:
    program = "import sys; from coldpress.cli import main; main(['--help'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert b"Traceback" not in err and b"Exception ignored" not in err


def test_the_face_is_light_to_import() -> None:
    program = (
        "import sys, coldpress, coldpress.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'starlette', 'pydantic'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, f"importing the command line imports {done.stderr}"


def test_public_names_exist() -> None:
    import coldpress

    for name in coldpress.__all__:
        assert callable(getattr(coldpress, name))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = coldpress.nonsense
