"""`python -m tests.runtime.server.cut_off KIND DEED`: a server of which the kernel knows whether it
looked anything up or opened a connection.

KIND "namespace": a network of its own, which leads nowhere and counts what is tried. "filter": the
kernel ends the process with SIGSYS when it makes or connects a socket. DEED "refuse": requests with
images; "connect" and "look-up": what these tests would have to notice. Prints what was counted.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

NOT_PERMITTED = 77
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1
_X86_64_SECCOMP, _SOCKET, _CONNECT = 317, 41, 42
_WATCHED = ("Ip:OutNoRoutes", "Udp:OutDatagrams", "Tcp:ActiveOpens")
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace() -> None:
    """Before there are threads. Nothing but ourselves can be reached from here."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        sys.exit(NOT_PERMITTED)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, _GET_FLAGS, request), 16)
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))


def forbid_sockets() -> None:
    """For all threads, from now on."""
    load, equal, end = 0x20, 0x15, 0x06
    program = (
        (load, 0, 0, 0),
        (equal, 1, 0, _SOCKET),
        (equal, 0, 1, _CONNECT),
        (end, 0, 0, 0x80000000),
        (end, 0, 0, 0x7FFF0000),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    whole = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    _libc.prctl(38, 1, 0, 0, 0)
    if os.uname().machine != "x86_64" or _libc.syscall(_X86_64_SECCOMP, 1, 1, whole) != 0:
        sys.exit(NOT_PERMITTED)


def counted() -> dict[str, int]:
    """What left this network or tried to, and connections that were opened in it."""
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        group, *fields = names.split()
        found |= {f"{group}{f}": int(v) for f, v in zip(fields, values.split()[1:], strict=True)}
    return {name: found[name] for name in _WATCHED}


def refuse(url: str, before: str) -> dict[str, int]:
    """`before`: "filter" to forbid sockets once the client has its connection."""
    import httpx

    from tests.runtime.server.images import IMAGES, image_requests

    with httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/health").status_code == 200
        start = counted()
        if before == "filter":
            forbid_sockets()
        for image in IMAGES:
            for path, body, refused in image_requests(image):
                answer = http.post(path, json=body)
                assert answer.status_code == (200 if refused is None else 400), answer.text
        return {name: value - start[name] for name, value in counted().items()}


def stray(deed: str) -> None:
    with contextlib.suppress(OSError):
        if deed == "connect":
            socket.create_connection(("198.51.100.7", 80), 5).close()
        else:
            socket.getaddrinfo("coldpress.invalid", 80)


def main(kind: str, deed: str) -> None:
    if kind == "namespace":
        enter_namespace()
    start = counted()
    if deed == "refuse":
        from tests.runtime.server.harness import ScriptedExecutor, running

        with running(ScriptedExecutor()) as server:
            print(json.dumps(refuse(server.url, kind)), flush=True)
        return
    if kind == "filter":
        forbid_sockets()
    stray(deed)
    print(json.dumps({name: value - start[name] for name, value in counted().items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
