"""An address that cannot be had is told before anything is loaded."""

import socket
from pathlib import Path

import pytest

from coldpress.cli import run
from quant.format.errors import InputError
from runtime.server.address import bound, listen
from tests.tiny import tiny_checkpoint


def test_a_bound_address_is_nobody_elses_once_it_is_listened_at() -> None:
    with bound("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        listen(one)
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(
            InputError, match=rf"cannot listen on 127.0.0.1:{port}: Address already"
        ):
            bound("127.0.0.1", port)


def test_who_comes_second_to_listen_is_told() -> None:
    with bound("127.0.0.1", 0) as one, bound("127.0.0.1", one.getsockname()[1]) as other:
        listen(one)
        with pytest.raises(InputError, match="choose another --host or --port"):
            listen(other)


@pytest.mark.parametrize("host", ["192.0.2.7", "not a host", "::7:1"])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(InputError, match=f"cannot listen on {host}:0: "):
        bound(host, 0)


def test_a_port_in_use_costs_no_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("coldpress.serving.StartedModel", refuse)
    model = tiny_checkpoint(tmp_path / "model")
    with bound("127.0.0.1", 0) as taken:
        listen(taken)
        port = taken.getsockname()[1]
        assert run(["serve", str(model), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
