"""Every exception that a user of coldpress can see.

ColdpressError                      exit code 3: our own failure
├── InputError                      exit code 2: the input or the usage is wrong
│   ├── FileFormatError             a file is corrupt, truncated, or not what it claims to be
│   ├── UnsupportedModelError       a model, tensor or scheme that we do not know
│   ├── RecipeError                 a recipe that does not validate, or matches nothing
│   └── MissingExtraError           an optional package is not installed
└── CheckFailedError                exit code 1: a gate or a verification failed

The message is one plain sentence that names the tensor, key or file, and says what to do.
"""

from pathlib import Path


class ColdpressError(Exception):
    """Base of every exception that coldpress raises on purpose."""

    exit_code = 3


class InputError(ColdpressError):
    """The user's input or usage is wrong; the message says how to mend it."""

    exit_code = 2


class FileFormatError(InputError):
    """A file does not hold what its format promises."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)
        self.problem = problem


class UnsupportedModelError(InputError):
    """A model family, tensor or number format that coldpress does not know."""


class RecipeError(InputError):
    """A recipe that does not validate, or a pattern in it that matches nothing."""


class MissingExtraError(InputError):
    """A feature was asked for whose optional package is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'coldpress[{extra}]'"
        )


class CheckFailedError(ColdpressError):
    """A gate or a verification did not hold."""

    exit_code = 1
