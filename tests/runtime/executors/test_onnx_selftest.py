"""The check of ONNX Runtime's products, and that it notices wrong ones."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from compile.to_onnx.types import Form
from quant.format.errors import CheckFailedError
from quant.format.scheme import ActivationScheme, PerGroup, PerTensor
from runtime.executors.onnx.executor import ACCURACY_LEVEL
from runtime.executors.onnx.selftest import check_products, worst_error

FORMS = [
    Form(dtype, "", group, zero_points)
    for dtype in ("int4", "int8")
    for group in (0, 16, 32, 64, 128, 256)
    for zero_points in (False, True)
]
INPUTS = [
    ActivationScheme("int8"),
    ActivationScheme("int8", PerTensor(), dynamic=False),
    ActivationScheme("int8", PerGroup(16)),
]
FORMS += [
    Form(dtype, "", group, inputs=inputs)
    for dtype, group in (("int8", 0), ("int8", 32), ("int4", 64))
    for inputs in INPUTS
]
Array = npt.NDArray[np.float32]


def options_of(exact: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(ACCURACY_LEVEL, "0" if exact else "4")
    return options


@pytest.mark.parametrize("exact", [True, False])
def test_every_form_is_multiplied_rightly_here(exact: bool) -> None:
    check_products(FORMS, options_of(exact), exact)


def test_rounded_inputs_are_more_than_sums_explain() -> None:
    """So that the check with exact inputs does tell the two apart."""
    assert worst_error(Form("int4", "", 32), options_of(exact=False), exact=True) > 1


def swapped(y: Array) -> Array:
    return y[:, ::-1]


def zeroed(y: Array) -> Array:
    return y * 0


def not_finite(y: Array) -> Array:
    return y * np.nan


@pytest.mark.parametrize("damage", [swapped, zeroed, not_finite])
@pytest.mark.parametrize("exact", [True, False])
def test_wrong_products_are_noticed(
    exact: bool, damage: Callable[[Array], Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaged(onnxruntime.InferenceSession):  # type: ignore[misc]
        def run(self, *args: Any) -> list[Array]:
            return [damage(y) for y in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Damaged)
    for form in FORMS:
        words = f"multiplies {form.dtype} weights in groups of {form.group or 'a whole row'} wrong"
        with pytest.raises(CheckFailedError, match=re.escape(words)):
            check_products([form], options_of(exact), exact)
