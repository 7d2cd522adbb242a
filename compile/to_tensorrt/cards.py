"""Compute capabilities that engines are made for ahead of time, and why others are refused."""

from collections.abc import Mapping

from compile.onnx_bytes import FP8
from quant.format.errors import InputError

CARDS: dict[str, str] = {
    "sm75": "Turing: T4, RTX 20",
    "sm80": "Ampere: A100, A30",
    "sm86": "Ampere: A10, A40, RTX 30",
    "sm89": "Ada: L4, L40, RTX 40",
    "sm120": "Blackwell: RTX 50, RTX PRO 6000",
    "sm121": "Blackwell: GB10",
}
"""What tensorrt_rtx builds for on a machine without a GPU."""
LACKING: dict[str, tuple[str, ...]] = {
    "sm75": ("int4", "bfloat16", FP8),
    "sm80": (FP8,),
    "sm86": (FP8,),
}
"""Types of stored numbers for which a card's engine is refused by the builder."""
REFUSED: dict[str, str] = {
    "sm87": "Orin",
    "sm90": "Hopper: H100, H200",
    "sm100": "Blackwell: B100, B200",
    "sm103": "Blackwell: B300",
    "sm110": "Thor",
}


def parse_cards(detail: str) -> tuple[str, ...]:
    """The cards of `smNN`, `smNN+smNN` or `smNN,smNN`, in the order of CARDS, each once. Raises
    InputError for one that no engine can be made for ahead of time, and says why."""
    asked = [word.strip() for word in detail.replace("+", ",").split(",")]
    for word in asked:
        if word in REFUSED:
            raise InputError(
                f"TensorRT-RTX makes no engines for {word} ({REFUSED[word]}); on a machine with "
                "that GPU and the package 'tensorrt', use --target tensorrt, or serve --target onnx"
            )
        if word not in CARDS:
            raise InputError(
                f"'{word}' is no compute capability that engines are made for; known are "
                f"{', '.join(CARDS)}, and several as in tensorrt:sm80+sm89"
            )
    return tuple(card for card in CARDS if card in asked)


def check_types(cards: tuple[str, ...], types: Mapping[str, str]) -> None:
    """Raises InputError naming a tensor whose type a card has no instructions for.

    types: of each tensor as it is stored, by name.
    """
    for card in cards:
        name = next((name for name, dtype in types.items() if dtype in LACKING.get(card, ())), None)
        if name is not None:
            raise InputError(
                f"{card} ({CARDS[card]}) computes nothing with {types[name]}, which tensor {name} "
                "is stored in; leave it out, or use --target onnx"
            )
