"""Compute capabilities that engines are made for ahead of time, and why others are refused."""

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
