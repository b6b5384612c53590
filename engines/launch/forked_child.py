"""What a process owes the world after it was forked from a server: let go of its socket, die with it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket

_PR_SET_PDEATHSIG = 1
#: Looked up before any fork: a forked child should not load libraries.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends.

    Without it a SIGKILL of vLLM's API server leaves its engine process running, with the model in memory.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def release_server_sockets() -> None:
    """Close the TCP sockets that are bound but not connected, which the server listens on or will.

    The engine process inherits the API server's socket by the fork. If it kept it, clients could still
    connect after the server died, and would wait for an answer that nobody gives.
    """
    for descriptor in _open_descriptors():
        if _is_server_socket(descriptor):
            os.close(descriptor)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _is_server_socket(descriptor: int) -> bool:
    """Whether the descriptor is a TCP socket with a port of its own and no peer."""
    try:
        duplicate = socket.socket(fileno=os.dup(descriptor))
    except OSError:  # no socket, or the descriptor that listed the folder
        return False
    with duplicate:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6) or duplicate.type != socket.SOCK_STREAM:
            return False
        if duplicate.getsockname()[1] == 0:
            return False
        try:
            duplicate.getpeername()
        except OSError:
            return True
        return False
