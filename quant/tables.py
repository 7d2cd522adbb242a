"""The token table and the output head: targets of their own, apart from the decoder layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.format.errors import RecipeError
from quant.format.scheme import PerGroup, QuantizedScheme
from quant.recipe import Recipe, SchemeSpec
from quant.schemes import scheme_of
from quant.tasks import LinearTask

if TYPE_CHECKING:
    from quant.skeleton import Skeleton


@dataclass(frozen=True)
class TableTasks:
    """What to do with the token table, and with an output head that is a matrix of its own."""

    embeddings: LinearTask | None = None
    head: LinearTask | None = None

    def by_module(self) -> dict[str, LinearTask]:
        """Those that there are, by module name."""
        return {task.module: task for task in (self.embeddings, self.head) if task is not None}


NO_TABLES = TableTasks()


def table_tasks(recipe: Recipe, skeleton: "Skeleton") -> TableTasks:
    """The tasks that the recipe's `embeddings` and `lm_head` ask for.

    A row of the token table is one token's vector, so that no calibration tells its columns apart:
    it is rounded to nearest. A head that is the token table is rounded with it; raises RecipeError
    where `lm_head` alone is asked for then.
    """
    embeddings = head = None
    width = skeleton.hidden_size
    if recipe.embeddings is not None:
        scheme = _scheme(recipe.embeddings, width, "embeddings")
        embeddings = LinearTask(skeleton.embeddings_name(), scheme, "rtn")
    if recipe.lm_head is not None:
        name = skeleton.head_name()
        if name is not None and name not in skeleton.tied_names():
            module = name.removesuffix(".weight")
            head = LinearTask(module, _scheme(recipe.lm_head, width, "lm_head"), recipe.algorithm)
        elif embeddings is None:
            raise RecipeError(
                "lm_head is the token table in this model: set 'embeddings' instead of 'lm_head'"
            )
    return TableTasks(embeddings, head)


def table_notes(recipe: Recipe, tables: TableTasks) -> list[str]:
    """What the recipe says of tables that this model does not have."""
    if recipe.lm_head is None or tables.head is not None:
        return []
    return ["lm_head is the token table in this model, which is rounded as 'embeddings' says"]


def _scheme(spec: SchemeSpec, width: int, key: str) -> QuantizedScheme:
    if spec.type == "ggml":
        raise RecipeError(f"{key}: a mix of ggml types deals out types to tables itself: drop it")
    scheme = scheme_of(spec, spec.group_size)
    if isinstance(scheme.granularity, PerGroup) and width % scheme.granularity.size:
        raise RecipeError(
            f"{key}.group_size {scheme.granularity.size} does not divide {width} columns: set one "
            "that does, or channel"
        )
    return scheme
