"""What `coldpress serve` makes of its arguments and of models.yaml, before anything is loaded."""

import os
from pathlib import Path

import pytest

from coldpress.cli import run
from coldpress.loading import Machine
from coldpress.serving import ModelPlan, ServerPlan, named_path, open_registry, started_ahead
from coldpress.serving_config import read_config
from coldpress.store.local import Store
from coldpress.store.pull import pull
from coldpress.store.resolve import resolve
from compile.manifest import write_manifest
from quant.format.errors import InputError
from runtime.engine.options import EngineOptions
from runtime.server.registry_names import Alias, Shadow
from tests.tiny import tiny_checkpoint

DEFAULTS = ModelPlan("", Path(), Machine(threads=1))


def config(tmp_path: Path, text: str) -> ServerPlan:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return read_config(path, DEFAULTS, lambda name: (name, Path("/store") / name))


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    plan = config(
        tmp_path,
        """
        models:
          small: {path: a.gguf, context: 64, kv_cache: 2MB, max_running: 4, load: on-demand,
                  activations: float32, threads: 2, backend: torch, prefix_cache: false,
                  target_step_seconds: null}
          large: org/large:q4
        aliases: {prod: {small: 90, large: 10}, default: small}
        shadows: [{model: small, copy_to: large, share: 0.5}]
        idle_unload: 5m
        make_room: true
        """,
    )
    engine = EngineOptions(max_running=4, prefix_cache=False, target_step_seconds=None)
    small = ModelPlan(
        "small", tmp_path / "a.gguf", Machine("torch", 2, True), 64, 2_000_000, engine, True
    )
    large = ModelPlan("large", Path("/store/org/large:q4"), Machine(threads=1))
    assert plan == ServerPlan(
        [small, large],
        [Alias("prod", (("small", 90.0), ("large", 10.0))), Alias("default", (("small", 1.0),))],
        [Shadow("small", "large", 0.5)],
        300.0,
        True,
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file: Input should be"),
        ("models: {}", "models: Dictionary should have at least 1 item"),
        ("models: {a: {}}", "models.a.path: Field required"),
        ("models: {a: 7}", "models.a: Input should be"),
        ("models: {a: {path: x, contxt: 5}}", "models.a: the key 'contxt' is unknown; known are"),
        ("models: {a: {path: x, context: 1}}", "models.a.context: Input should be greater than"),
        ("models: {a: {path: x, context: '64'}}", "models.a.context: Input should be a valid int"),
        ("models: {a: {path: x, load: never}}", "models.a.load: Input should be 'at-start' or"),
        ("models: {a: {path: x, kv_cache: 5XB}}", "models.a.kv_cache: '5XB' is not a size"),
        ("models: {a: {path: x, max_running: 0}}", "models.a: max_running must be at least 1"),
        ("models: {a: {path: x, max_running: x}}", "models.a.max_running: Input should be a valid"),
        ("models: {a: x}\naliases: {b: {}}", "aliases.b"),
        ("models: {a: x}\naliases: {b: {a: 0}}", "aliases.b.a: Input should be greater than 0"),
        ("models: {a: x}\nidle_unload: 5 weeks", "idle_unload: '5 weeks' is not a time such as"),
        ("models: {a: x}\nshadows: [{model: a, copy_to: b, share: 2}]", "shadows.0.share: Input"),
        ("modles: {a: x}", "models: Field required"),
        ("models: {a: x}\nmodles: 1", "modles: Extra inputs are not permitted"),
        ("models: [", "is not YAML: while parsing"),
        ("a: !!python/object/apply:os.system [x]", "is not YAML: could not determine"),
    ],
)
def test_what_a_file_says_wrongly_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError) as failed:
        config(tmp_path, text)
    assert str(failed.value).startswith(f"{tmp_path / 'models.yaml'}: ")
    assert complaint in str(failed.value)


def test_arguments_name_models(tmp_path: Path) -> None:
    (tmp_path / "x=y.gguf").touch()
    store = Store(tmp_path / "store")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    stored = store.directory(pull(str(tmp_path / "model"), "org/m:q4", store=store))

    def named(text: str) -> tuple[str, Path]:
        return named_path(text, lambda text: resolve(text, store))

    assert named(str(tmp_path / "x=y.gguf")) == ("x=y", tmp_path / "x=y.gguf")
    assert named(f"a={tmp_path / 'x=y.gguf'}") == ("a", tmp_path / "x=y.gguf")
    assert named("org/m:q4") == ("org/m:q4", stored)
    assert named("a=org/m:q4") == ("a", stored)
    assert named("./missing.gguf") == ("missing.gguf", Path("missing.gguf"))
    with pytest.raises(InputError, match=r"missing: no such file .* it has: org/m:q4 \(coldpress"):
        named("missing")


def test_mistakes_are_told_before_anything_is_loaded(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("coldpress.serving.StartedModel", refuse)

    def told(*args: object) -> str:
        assert run(["serve", *map(str, args)]) == 2
        return capsys.readouterr().err

    assert "nothing to serve; name an ARTIFACT" in told()
    assert "two models or aliases are called 'model'" in told(tiny, tiny)
    assert "--name is for a lone model" in told(tiny, f"b={tiny}", "--name", "x")
    assert "the alias 'p' names 'x', but the models are: a" in told(f"a={tiny}", "--alias", "p=x")
    assert "the shadow of 'a' names 'x'" in told(f"a={tiny}", "--shadow", "a=x:0.5")
    assert "no such file or directory" in told(f"a={tiny}", "b=missing.gguf")
    assert "longer than the 256 of 'a'" in told(f"a={tiny}", "--context", "999")
    assert "'x' is not a time such as 90s" in told(tiny, "--idle-unload", "x")
    monkeypatch.setattr("runtime.machine.available_memory_bytes", lambda: 1_000_000)
    both = told(f"a={tiny}", f"b={tiny}")
    assert "'a' and 'b' need " in both and "but 1 MB are free; serve fewer models" in both


def test_a_server_of_two_models_loads_one_now_and_one_later(tmp_path: Path) -> None:
    first, second = (tiny_checkpoint(tmp_path / name) for name in ("one", "two"))
    figures = {"kld": {"mean": 0.01}, "perplexity": 9.0, "text": {"sha256": "where it lay"}}
    write_manifest(first, "checkpoint", evaluation=figures)
    machine = Machine(threads=1)
    plan = ServerPlan(
        [
            ModelPlan("a", first, machine, context=64, kv_cache_bytes=1 << 20),
            ModelPlan("b", second, machine, kv_cache_bytes=1 << 20, on_demand=True),
        ]
    )
    registry = open_registry(plan)
    try:
        assert [model.state for model in registry.models.values()] == ["ready", "unloaded"]
        card = registry.models["a"].settings.card
        assert card["evaluation"] == {"perplexity": 9.0, "kld": {"mean": 0.01}}
        assert (card["max_model_len"], card["format"]) == (64, "huggingface")
        assert registry.models["a"].settings.needs["KV cache"] == 1 << 20
        registry.load("b")
        service = registry.models["b"].service
        assert service is not None and service.model_name == "b"
        registry.unload("a")
        assert registry.models["a"].state == "unloaded"
    finally:
        registry.close()


def test_a_process_that_was_started_ahead_for_nothing_is_ended() -> None:
    plan = ServerPlan([ModelPlan("later", Path("x.gguf"), on_demand=True)])
    with started_ahead(plan) as ahead:
        assert ahead is None
    plan = ServerPlan([*plan.models, ModelPlan("now", Path("y.gguf"))])
    pids = []
    with pytest.raises(KeyError), started_ahead(plan) as ahead:
        assert ahead is not None and not ahead.is_used
        pids.append(ahead.pid)
        os.kill(ahead.pid, 0)
        raise KeyError("a mistake")
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
