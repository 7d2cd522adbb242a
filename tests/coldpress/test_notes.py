"""What of an artifact is not used as it is stored is said on stderr, once, and in the JSON."""

import json
from pathlib import Path

import pytest

from coldpress.cli import run
from compile.open_model import open_model
from quant.format.kv_cache import KvCacheScheme
from tests.quant.format.random_weights import int_scheme
from tests.quant.format.tiny_quantized import MLP, quantized_llama
from tests.tiny import TEXT, tiny_checkpoint, write_tokenizer


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with scales for a KV cache, which our executors keep in float32."""
    directory = tmp_path_factory.mktemp("noted") / "model"
    schemes = dict.fromkeys(MLP, int_scheme(4, True, 32))
    quantized_llama(directory, schemes, kv_cache=KvCacheScheme())
    write_tokenizer(directory)
    (directory.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    "command",
    [
        ["run", "MODEL", "press", "--raw", "--max-tokens", "2"],
        ["eval", "MODEL", "--text", "TEXT", "--window", "32", "--max-tokens", "200"],
        ["bench", "MODEL", "--concurrency", "1", "--prompt-tokens", "4", "--output-tokens", "2"],
        ["serve", "MODEL"],
    ],
    ids=lambda command: str(command[0]),
)
def test_said_once_on_stderr(
    noted: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (note,) = open_model(noted).notes
    monkeypatch.setattr(
        "runtime.server.main.serve", lambda _1, _2, _3, ready, **_4: ready("http://x")
    )
    names = {"MODEL": str(noted), "TEXT": str(noted.parent / "text.txt")}
    assert run([*(names.get(word, word) for word in command), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count(note) == 1
    assert f"note: model: {note}\n" in err
    assert json.loads(out)["notes"] == [f"model: {note}"]


def test_nothing_is_said_of_a_model_that_is_used_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama")
    assert open_model(model).notes == ()
    assert run(["run", str(model), "press", "--raw", "--max-tokens", "2", "--json"]) == 0
    assert "note:" not in capsys.readouterr().err
