"""What a confined process gives up: memory, time, files, the network and other programs.

The limits of setrlimit hold everywhere. On Linux a filter (seccomp(2), classic BPF over `struct
seccomp_data`) makes system calls that reach outside fail with EACCES; it needs no privilege.
"""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Sequence

_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000
_EACCES = 13
_ENOSYS = 38
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_FOREIGN_ABI = 0x40000000
"""Numbers from here on are x86-64's second table of the same calls."""

# socket socketpair connect bind listen accept accept4
# open openat openat2 creat fork vfork execve execveat kill ptrace
# process_vm_readv process_vm_writev
# unlink unlinkat rename renameat renameat2 mkdir mkdirat link linkat symlink symlinkat chmod
# fchmodat truncate mount unshare setns bpf io_uring_setup keyctl memfd_create pidfd_open
_X86_64 = (
    *(41, 53, 42, 49, 50, 43, 288),
    *(2, 257, 437, 85, 57, 58, 59, 322, 62, 101, 310, 311),
    *(87, 263, 82, 264, 316, 83, 258, 86, 265, 88, 266, 90),
    *(268, 76, 165, 272, 308, 321, 425, 250, 319, 434),
)
_AARCH64 = (
    *(198, 199, 203, 200, 201, 202, 242),
    *(56, 437, 221, 281, 129, 117, 270, 271),
    *(35, 38, 276, 34, 37, 36),
    *(53, 45, 40, 97, 268, 280, 425, 219, 279, 434),
)
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
_CLONE3 = 435
"""Its flags lie behind a pointer that a filter cannot follow; without it, clone is used."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("start", ctypes.POINTER(_Instruction)))


def bound_resources(memory_bytes: int) -> None:
    """At most `memory_bytes` of addresses; no core dumps, no file may grow, few may be open."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def bound_processor(seconds: float) -> None:
    """The kernel ends this process once it has used `seconds` more of processor time, rounded up;
    this holds even where nobody is left to kill it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def close_doors() -> bool:
    """No sockets, files, programs or other processes from now on; False where the system has no
    such filter for us."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return False
    architecture, numbers = machine
    code = _filter(architecture, numbers)
    instructions = (_Instruction * len(code))(*code)
    program = _Program(len(code), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    closed: bool = libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0
    return closed


def _filter(architecture: int, numbers: Sequence[int]) -> list[_Instruction]:
    """Refuse `numbers` and whatever is called through another architecture's table."""
    refusal = _Instruction(_RETURN, 0, 0, _ERRNO | _EACCES)
    code = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, architecture),
        refusal,
        _Instruction(_LOAD, 0, 0, _NUMBER_AT),
        _Instruction(_JUMP_IF_AT_LEAST, 0, 1, _FOREIGN_ABI),
        refusal,
        _Instruction(_JUMP_IF_EQUAL, 0, 1, _CLONE3),
        _Instruction(_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in numbers:
        code += [_Instruction(_JUMP_IF_EQUAL, 0, 1, number), refusal]
    return [*code, _Instruction(_RETURN, 0, 0, _ALLOW)]


def be_nice(niceness: int) -> None:
    if niceness:
        os.nice(niceness)
