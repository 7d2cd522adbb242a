"""The command line: finds the command, runs it, and turns what went wrong into an exit code.

0 done, 1 a gate or a check failed, 2 the input or the usage is wrong, 3 our own failure,
130 interrupted. A mistake of the user is one sentence; a traceback is a bug in coldpress.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from coldpress import __version__
from coldpress.console import Console
from quant.format.errors import ColdpressError

COMMANDS = {
    "quantize": "Choose the integers: a checkpoint becomes a quantized one.",
    "build": "Put a checkpoint into the container it travels in.",
    "serve": "Answer OpenAI-compatible requests.",
    "pull": "Bring a model into the local store.",
    "list": "The models of the local store.",
    "rm": "Remove models from the local store.",
    "push": "Put a stored model into a registry.",
    "run": "One answer, or a chat.",
    "eval": "Perplexity, and the distance to a baseline.",
    "bench": "Latency, throughput and memory.",
    "inspect": "What is in an artifact.",
    "report": "Artifacts on one page: errors, sizes, quality.",
    "plan": "What quantizing or building would make.",
    "verify": "Digests, the same integers, logits within bounds.",
    "demo": "A real model, from the package index to an answered request.",
}

USER_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EFBIG,
        errno.ENAMETOOLONG,
        errno.ENOTEMPTY,
    }
)
"""Failures of the file system that the user can mend, and that no bug of ours explains."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"coldpress.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.version_option(__version__, prog_name="coldpress")
@click.pass_context
def cli(ctx: click.Context, as_json: bool) -> None:
    """Press a trained language model into something servable."""
    console = ctx.ensure_object(Console)
    console.json = console.json or as_json


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `coldpress` program."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing but SystemExit escapes."""
    console = Console()
    try:
        result = cli.main(args, prog_name="coldpress", obj=console, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # What reads our output has left; the interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _report(error, console)
    return result if isinstance(result, int) else 0


def _report(error: Exception, console: Console) -> int:
    code = exit_code(error)
    if code == 3 and not isinstance(error, ColdpressError):
        traceback.print_exception(error)
        console.error("this is a bug in coldpress; please report it with the lines above", code)
    else:
        console.error(_sentence(error), code)
    return code


def exit_code(error: Exception) -> int:
    """The exit code that an exception stands for; 3 for everything unexpected."""
    if isinstance(error, ColdpressError):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return 2
    # By name: importing the engine for its exception would slow every command's start.
    if type(error).__name__ == "RequestError":
        return 2
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        return 2
    return 3


def _sentence(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "coldpress"
        return f"{error.format_message()} See '{command} --help'."
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
