"""Calls of the kernel that code in the sandbox is refused: a classic BPF program for `bwrap --seccomp`.

Namespaces and limits contain nearly everything. What is refused here is what they don't reach: memory that counts as
no process's (memfd, System V segments, pages in pipes, larger buffers of sockets), sockets of families that don't belong to a network
namespace (vsock reaches the host of a virtual machine), ways to meddle with the sandbox's first process, and large
parts of the kernel that no program of ours needs and that have had many holes.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

from ...schemas import Unsupported

# https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # Where they stand in `struct seccomp_data`.
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000
"""Numbers from here on are a second table of x86-64, which nobody uses; elsewhere there are none."""

_REFUSED_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
# The name that `platform.machine` gives: the kernel's constant AUDIT_ARCH_*, `socket`, and what is refused.
_MACHINES: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        41,
        {
            "shmget": 29,
            "setsockopt": 54,
            "semget": 64,
            "msgget": 68,
            "ptrace": 101,
            "mount": 165,
            "umount2": 166,
            "io_setup": 206,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "unshare": 272,
            "vmsplice": 278,
            "perf_event_open": 298,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "kcmp": 312,
            "memfd_create": 319,
            "bpf": 321,
            "userfaultfd": 323,
        },
    ),
    "aarch64": (
        0xC00000B7,
        198,
        {
            "io_setup": 0,
            "umount2": 39,
            "mount": 40,
            "vmsplice": 75,
            "unshare": 97,
            "ptrace": 117,
            "msgget": 186,
            "semget": 190,
            "shmget": 194,
            "setsockopt": 208,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "perf_event_open": 241,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "kcmp": 272,
            "memfd_create": 279,
            "bpf": 280,
            "userfaultfd": 282,
        },
    ),
}


def seccomp_program(machine: str | None = None) -> bytes:
    """Return the filter for this machine, or for one of another kind.

    Raises:
        Unsupported: the calls of such a machine are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise Unsupported(f"there is no sandbox for code on machines of the kind {machine}")
    architecture, new_socket, own = _MACHINES[machine]
    refused = sorted([*_REFUSED_EVERYWHERE.values(), *own.values()])
    # The program ends in two returns: to allow, and to refuse.
    allow = 8 + len(refused)
    refuse = allow + 1
    program: list[tuple[int, int, int, int]] = []

    def add(code: int, value: int, yes: int | None = None, no: int | None = None) -> None:
        """Add an instruction; ``yes`` and ``no`` are the places to go to, the next one if not given."""
        here = len(program) + 1
        program.append((code, (yes or here) - here, (no or here) - here, value))

    add(_LOAD, _ARCHITECTURE)
    add(_EQUAL, architecture, yes=3)
    add(_RETURN, _KILL)
    add(_LOAD, _NUMBER)
    add(_AT_LEAST, _X32, yes=refuse)
    for number in refused:
        add(_EQUAL, number, yes=refuse)
    add(_EQUAL, new_socket, no=allow)
    add(_LOAD, _FIRST_ARGUMENT)
    # Allowed is the family that stays on the machine: asyncio and multiprocessing need it.
    add(_EQUAL, socket.AF_UNIX, yes=allow, no=refuse)
    add(_RETURN, _ALLOW)
    add(_RETURN, _ERRNO | errno.EPERM)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
