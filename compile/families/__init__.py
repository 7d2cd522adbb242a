"""Model families: each row of the table turns a Hugging Face config into a Program."""

from compile.families.decoder import build_program
from compile.families.table import FAMILIES
from compile.families.weights import check_weights

__all__ = ["FAMILIES", "build_program", "check_weights"]
