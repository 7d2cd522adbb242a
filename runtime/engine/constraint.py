"""What the text of an answer must be, and what holds its tokens to it."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

ConstraintKind = Literal["json_schema", "regex", "lark"]
GRAMMAR_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Limits by which the times of compiling a grammar are counted."""


@dataclass(frozen=True)
class Constraint:
    """Plain data: a JSON schema, a regular expression that the whole text matches, or a grammar in
    llguidance's Lark syntax."""

    kind: ConstraintKind
    text: str


class ConstraintError(ValueError):
    """An answer cannot be held to its constraint (any longer); one sentence says why."""


class Matcher(Protocol):
    """Where one answer stands in its grammar. One thread at a time."""

    @property
    def finished(self) -> bool:
        """The text is complete, and no token may follow it."""
        ...

    def compute(self) -> None:
        """Find out which tokens may come next; ending tokens where the text may end here.

        Raises ConstraintError; then no token may be chosen.
        """
        ...

    def permits(self, token_id: int) -> bool:
        """Whether a token, counted from 0 to the size of the vocabulary, may come next."""
        ...

    def allowed(self) -> npt.NDArray[np.intp]:
        """All tokens that may come next, ascending."""
        ...

    def forbidden(self) -> npt.NDArray[np.intp] | None:
        """All tokens that may not come next, where they are few; None where they are not."""
        ...

    def accept(self, token_id: int) -> None:
        """The token, which was allowed, now belongs to the answer."""
        ...


class Grammars(Protocol):
    """Makes matchers for one model's vocabulary; slow, and callable from any thread."""

    def knows(self, constraint: Constraint) -> bool:
        """Whether it is compiled already."""
        ...

    def matcher(self, constraint: Constraint) -> Matcher:
        """Raises ConstraintError for a constraint that cannot be compiled."""
        ...
