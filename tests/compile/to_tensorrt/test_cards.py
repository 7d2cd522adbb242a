"""Which GPUs an engine can be made for, and what is said about the others."""

import pytest

from coldpress.targets import parse_target
from compile.to_tensorrt.cards import CARDS, REFUSED, parse_cards
from quant.format.errors import InputError


@pytest.mark.parametrize(
    ("detail", "cards"),
    [
        ("sm89", ("sm89",)),
        ("sm89+sm80", ("sm80", "sm89")),
        ("sm120,sm75", ("sm75", "sm120")),
        ("sm89,sm89", ("sm89",)),
        ("+".join(CARDS), tuple(CARDS)),
    ],
)
def test_one_card_or_several(detail: str, cards: tuple[str, ...]) -> None:
    assert parse_cards(detail) == cards


@pytest.mark.parametrize("card", REFUSED)
def test_a_card_without_engines_is_refused_with_what_it_is(card: str) -> None:
    with pytest.raises(InputError, match=rf"no engines for {card} \(.*tensorrt") as refusal:
        parse_cards(f"sm89+{card}")
    assert REFUSED[card] in str(refusal.value)


@pytest.mark.parametrize("detail", ["", "sm", "89", "sm8 9", "SM89", "sm89+", "sm91", "sm89;sm80"])
def test_an_unknown_card_is_refused_with_those_that_are_known(detail: str) -> None:
    with pytest.raises(InputError, match="sm75, sm80, sm86, sm89, sm120, sm121"):
        parse_cards(detail)


def test_a_target_is_spelled_in_one_way() -> None:
    assert str(parse_target("tensorrt:sm89,sm80")) == "tensorrt:sm80+sm89"
    assert parse_target("tensorrt").cards == ()
    with pytest.raises(InputError, match="tensorrt:smNN"):
        parse_target("tensorflow")
