"""From a recipe to the transforms of one model, before any weight is read."""

from collections.abc import Mapping
from typing import Any

from quant.format.checkpoint import Checkpoint
from quant.recipe import Recipe
from quant.transforms.layouts import is_known, layout_of
from quant.transforms.rotated_checkpoint import RotatedCheckpoint
from quant.transforms.settings import (
    AwqSettings,
    BalanceSettings,
    LayerTransforms,
    SmoothQuantSettings,
)


def rotated(source: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The checkpoint that is quantized: `source`, rotated where the recipe asks for that.

    Raises UnsupportedModelError for a model that cannot be.
    """
    if recipe.rotation is None:
        return source
    return RotatedCheckpoint(source, recipe.rotation.seed)


def layer_transforms(recipe: Recipe, config: Mapping[str, Any]) -> LayerTransforms | None:
    """What happens to each layer, None for nothing. config: the content of config.json.

    Raises UnsupportedModelError for a family whose fold points are not known.
    """
    model_type = str(config.get("model_type"))
    balanced = recipe.balance is not None and is_known(model_type)
    if recipe.awq is None and recipe.smoothquant is None and not balanced:
        return None
    layout_of(model_type)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    awq = smoothquant = None
    if recipe.awq is not None:
        asked = recipe.awq
        awq = AwqSettings(asked.ratios, asked.formula, asked.clip, asked.tokens)
    if recipe.smoothquant is not None:
        smooth = recipe.smoothquant
        alpha = None if smooth.alpha == "auto" else smooth.alpha
        smoothquant = SmoothQuantSettings(alpha, smooth.outputs, smooth.tokens)
    balance = None
    if recipe.balance is not None:
        balance = BalanceSettings(recipe.balance.tokens)
    return LayerTransforms(model_type, int(head_dim), awq, smoothquant, balance)


def scaled_tensors(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, str]:
    """Patterns of the tensors that awq and smoothquant change, with what they do to them.

    Raises UnsupportedModelError for a family whose fold points are not known.
    """
    transforms = layer_transforms(recipe, config)
    if transforms is None:
        return {}
    layout, names = layout_of(transforms.model_type), list[str]()
    for point in layout.norms:
        names += [f"{name}.weight" for name in (point.norm, *point.readers)]
    if recipe.awq or recipe.balance or (recipe.smoothquant and recipe.smoothquant.outputs):
        for linear in layout.linears:
            names += [f"{linear.producer}.{leaf}" for leaf in ("weight", "bias")]
            names.append(f"{linear.reader}.weight")
    return {f"*.{name}": f"scaled by {_scaling(recipe)} where that helps" for name in names}


def _scaling(recipe: Recipe) -> str:
    asked = (
        ("smoothquant", recipe.smoothquant),
        ("balance", recipe.balance),
        ("awq", recipe.awq),
    )
    return " and ".join(name for name, spec in asked if spec is not None)


def transform_notes(source: Checkpoint, recipe: Recipe) -> list[str]:
    """What transforms change of `source` besides the linears that are rounded."""
    notes = []
    if recipe.rotation is not None:
        notes.append(
            "every tensor that writes to or reads the residual stream is rotated; norms become "
            f"ones (seed {recipe.rotation.seed})"
        )
        if source.config.get("tie_word_embeddings"):
            notes.append(
                "lm_head.weight is written beside the embeddings: rotated, they are not the same"
            )
    model_type = str(source.config.get("model_type"))
    if recipe.balance is not None and not is_known(model_type):
        notes.append(f"columns are not balanced: where is not known for model_type {model_type!r}")
    if layer_transforms(recipe, source.config) is not None:
        notes.append(
            f"norms and biases of decoder layers are scaled by {_scaling(recipe)} where that helps "
            "their linears to round better"
        )
    return notes
