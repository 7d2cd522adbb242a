"""Recipes: what is accepted, and the sentence for what is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from quant.format.errors import RecipeError
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.recipe import load_recipe, parse_recipe, recipe_names
from quant.resolve import resolve

WIDTHS = {
    "model.layers.0.self_attn.q_proj": 576,
    "model.layers.0.mlp.down_proj": 1536,
    "model.layers.1.self_attn.q_proj": 576,
    "model.layers.1.mlp.down_proj": 1536,
}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_say_what_they_are(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    config = {"num_hidden_layers": 8, "num_attention_heads": 4}
    assert resolve(recipe, WIDTHS, ["lm_head"], config).tasks.keys() == WIDTHS.keys()


def test_a_recipe_costs_no_heavy_import() -> None:
    code = (
        "import sys, quant, quant.recipe, quant.resolve, quant.calibration, quant.preflight, "
        "quant.report, quant.run; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("scheme.groupsize=64", "unknown key 'scheme.groupsize'; did you mean 'scheme.group_size'"),
        ("algoritm=gptq", "unknown key 'algoritm'; did you mean 'algorithm'"),
        ("gptq.dampening=1", "did you mean 'gptq.damping'"),
        ("overrides=[{patern: x}]", "did you mean 'overrides.0.pattern'"),
        ("scheme.group_size=48", "'scheme.group_size' is 48"),
        ("scheme.num_bits='4'", "'scheme.num_bits' is '4'"),
        ("gptq.damping=0", "'gptq.damping' is 0"),
        ("calibration.samples=0", "'calibration.samples' is 0"),
        ("targets=[]", "'targets' is"),
        ("scheme.symmetric=1", "'scheme.symmetric' is 1"),
        ("scheme", "write it as key=value"),
        (".=4", "write it as key=value"),
        ("algorithm.x=4", "'algorithm' holds no keys"),
        ("targets=[", "not valid YAML"),
    ],
)
def test_a_bad_override_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("w4a16", [override])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_overrides_apply_before_validation() -> None:
    recipe = load_recipe("w4a16", ["scheme.group_size=channel", "ignore=[lm_head, '*.mlp.*']"])
    assert recipe.scheme.group_size == "channel"
    assert recipe.ignore == ("lm_head", "*.mlp.*")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'w4a16'"):
        load_recipe("w4a17")


def test_files_are_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("algorithm: rtn\n")
    assert load_recipe(path).algorithm == "rtn"
    path.write_text("- a list\n")
    with pytest.raises(RecipeError, match="no mapping"):
        load_recipe(path)
    path.write_text("a: [\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("key", ["targets", "ignore"])
def test_a_pattern_that_matches_nothing_is_refused(key: str) -> None:
    recipe = parse_recipe({key: ["*.q_prjo"]})
    with pytest.raises(RecipeError, match=f"'\\*.q_prjo' under '{key}' matches no linear"):
        resolve(recipe, WIDTHS, ["lm_head"])


def test_a_pattern_of_an_override_must_match_too() -> None:
    recipe = parse_recipe({"overrides": [{"pattern": "re:.*gate"}]})
    with pytest.raises(RecipeError, match=r"re:\.\*gate"):
        resolve(recipe, WIDTHS, ["lm_head"])
    with pytest.raises(RecipeError, match="no regular expression"):
        resolve(parse_recipe({"targets": ["re:("]}), WIDTHS, ["lm_head"])


def test_ignoring_everything_is_refused() -> None:
    with pytest.raises(RecipeError, match="quantizes nothing"):
        resolve(parse_recipe({"ignore": ["*"]}), WIDTHS, ["lm_head"])


def test_one_group_size_for_all_linears_of_a_scheme() -> None:
    """576 = 9 * 64 holds back 1536 = 12 * 128."""
    result = resolve(load_recipe("w4a16-g128"), WIDTHS, ["lm_head"])
    assert {t.scheme for t in result.tasks.values()} == {IntScheme(4, True, PerGroup(64))}
    assert "128 does not divide" in result.reasons["model.layers.0.mlp.down_proj"]
    assert result.kept == {"lm_head": "outside the decoder layers"}


def test_a_width_that_no_size_divides_gets_one_scale_per_row() -> None:
    result = resolve(load_recipe("w4a16"), {"a.0.x": 100, "a.0.y": 128}, ["lm_head"])
    assert result.tasks["a.0.x"].scheme.granularity == PerChannel()
    assert result.tasks["a.0.y"].scheme.granularity == PerGroup(64)
    assert "100 columns" in result.reasons["a.0.x"]


def test_the_last_matching_override_wins() -> None:
    recipe = parse_recipe(
        {
            "overrides": [
                {"pattern": "*.down_proj", "scheme": {"num_bits": 8, "group_size": 128}},
                {"pattern": "re:.*layers\\.1\\..*down_proj", "algorithm": "rtn"},
                {"pattern": "*.1.*.q_proj", "scheme": {"num_bits": 8, "group_size": "channel"}},
            ],
            "ignore": ["lm_head", "*.0.self_attn.q_proj"],
        }
    )
    result = resolve(recipe, WIDTHS, ["lm_head"])
    assert result.kept["model.layers.0.self_attn.q_proj"] == "ignored by '*.0.self_attn.q_proj'"
    down = result.tasks["model.layers.0.mlp.down_proj"]
    assert (down.algorithm, down.scheme) == ("gptq", IntScheme(8, True, PerGroup(128)))
    assert result.tasks["model.layers.1.mlp.down_proj"].algorithm == "rtn"
    assert result.tasks["model.layers.1.self_attn.q_proj"].scheme.granularity == PerChannel()


@pytest.mark.parametrize(
    ("data", "needed"),
    [
        ({"algorithm": "rtn"}, False),
        ({"algorithm": "gptq"}, True),
        ({"algorithm": "rtn", "overrides": [{"pattern": "*", "algorithm": "gptq"}]}, True),
    ],
)
def test_calibration_is_needed_only_for_error_feedback(
    data: dict[str, object], needed: bool
) -> None:
    assert parse_recipe(data).needs_calibration is needed


def test_every_pattern_that_matches_nothing_is_named_at_once() -> None:
    recipe = load_recipe("w4a16", ["targets=['*', 'nothing.*']", "ignore=[lm_head, 're:.*router']"])
    with pytest.raises(RecipeError) as caught:
        resolve(recipe, {"model.layers.0.mlp.up_proj": 64}, ["lm_head"])
    assert str(caught.value) == (
        "patterns 'nothing.*' under 'targets', 're:.*router' under 'ignore' match no linear of the "
        "model; its linears have names like 'model.layers.0.mlp.up_proj'"
    )
