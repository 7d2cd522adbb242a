"""Aliases and shadows: what is written, what is refused, and who answers how often."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import InputError
from runtime.server.errors import ApiError
from runtime.server.registry import Registry
from runtime.server.registry_names import Alias, Shadow, check_names, parse_alias, parse_shadow
from tests.runtime.server.fake_models import FakeModel


def test_what_an_alias_says() -> None:
    assert parse_alias("prod=a") == Alias("prod", (("a", 1.0),))
    assert parse_alias("prod=3") == Alias("prod", (("3", 1.0),))
    assert parse_alias("prod=org/a:q4") == Alias("prod", (("org/a:q4", 1.0),))
    assert parse_alias("prod=a:90,b:10") == Alias("prod", (("a", 90.0), ("b", 10.0)))
    assert parse_alias("prod=org/a:q4:90,b:.5") == Alias("prod", (("org/a:q4", 90.0), ("b", 0.5)))
    assert parse_shadow("a=b:0.1") == Shadow("a", "b", 0.1)


@pytest.mark.parametrize(
    "text", ["", "prod", "prod=", "=a", "prod=a,b", "prod=a:0,b:1", "prod=a:x,b:1", "prod=a:-1,b:2",
             "prod=a:nan,b:1", "prod=a:inf,b:1", "prod=a:1,,b:1", "prod=:1"],
)  # fmt: skip
def test_an_alias_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--alias .* is not of the form"):
        parse_alias(text)


@pytest.mark.parametrize("text", ["", "a", "a=b", "a=b:0", "a=b:1.1", "a=b:nan", "=b:1", "a=:1"])
def test_a_shadow_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--shadow .* is not of the form A=B:SHARE"):
        parse_shadow(text)


def test_names_that_lead_nowhere_are_refused() -> None:
    with pytest.raises(InputError, match="two models or aliases are called 'a'"):
        check_names(["a", "b"], [Alias("a", (("b", 1.0),))], [])
    with pytest.raises(InputError, match="the alias 'p' names 'c', but the models are: a, b"):
        check_names(["a", "b"], [Alias("p", (("a", 1.0), ("c", 1.0)))], [])
    with pytest.raises(InputError, match="the shadow of 'a' names 'c'"):
        check_names(["a"], [], [Shadow("a", "c", 0.5)])
    with pytest.raises(InputError, match="'a' cannot be its own shadow"):
        check_names(["a"], [], [Shadow("a", "a", 0.5)])
    with pytest.raises(InputError, match="cannot be a model's name"):
        check_names(["a\n"], [], [])


def test_requests_are_shared_out_by_weight() -> None:
    models = [FakeModel(name).settings for name in "abc"]
    alias = Alias("prod", (("a", 70.0), ("b", 20.0), ("c", 10.0)))
    registry = Registry(models, [alias], random=Random(7).random)
    counts = Counter(registry.resolve("prod").name for _ in range(5000))
    # Five standard deviations of a binomial count.
    for name, share in (("a", 0.7), ("b", 0.2), ("c", 0.1)):
        assert abs(counts[name] - 5000 * share) < 5 * (5000 * share * (1 - share)) ** 0.5
    sticky = Counter(registry.resolve("prod", f"user-{i}").name for i in range(5000))
    assert abs(sticky["a"] - 3500) < 5 * (5000 * 0.7 * 0.3) ** 0.5


def test_a_user_stays_on_one_model() -> None:
    models = [FakeModel(name).settings for name in "ab"]
    registry = Registry(models, [Alias("prod", (("a", 1.0), ("b", 1.0)))], random=Random(1).random)
    chosen = {user: registry.resolve("prod", user).name for user in map(str, range(50))}
    assert set(chosen.values()) == {"a", "b"}
    for user, name in chosen.items():
        assert registry.resolve("prod", user).name == name


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_every_point_has_its_model(point: float, weights: list[float]) -> None:
    alias = Alias("x", tuple((str(index), weight) for index, weight in enumerate(weights)))
    chosen = int(alias.choose(point))
    below, total = sum(weights[:chosen]), sum(weights)
    slack = 1e-9 * total
    assert below - slack <= point * total <= below + weights[chosen] + slack


def test_an_unknown_name_is_told_what_there_is() -> None:
    registry = Registry([FakeModel("a").settings], [parse_alias("prod=a")])
    assert registry.resolve("prod").name == registry.resolve(None).name == "a"
    with pytest.raises(ApiError, match="'x' does not exist; this server has: a, prod") as unknown:
        registry.resolve("x")
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
