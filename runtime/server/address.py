"""The address of a server: taken before anything is loaded, listened at when all is there."""

import socket

from quant.format.errors import InputError

_BACKLOG = 2048


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and listens to nobody yet; port 0 takes a free one.

    Raises InputError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise _not_ours(host, port, error) from error
    return found


def listen(at: socket.socket) -> None:
    """Take connections. InputError if another server has come to listen there meanwhile."""
    host, port = at.getsockname()[:2]
    try:
        at.listen(_BACKLOG)
    except OSError as error:
        at.close()
        raise _not_ours(host, port, error) from error


def _not_ours(host: str, port: int, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port")
