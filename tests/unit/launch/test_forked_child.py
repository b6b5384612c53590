"""A process forked from a server neither holds its socket nor outlives it."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

FORK = """
import os, signal, socket, sys
from engines.launch.forked_child import die_with_parent, release_server_sockets
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
child = os.fork()
if child == 0:
    {in_child}
    client.sendall(b"still open")
    signal.pause()
accepted.recv(10)
print(child, server.getsockname()[1], flush=True)
signal.pause()
"""


def start(in_child: str) -> tuple[subprocess.Popen[str], int, int]:
    """A server that has forked; its process, the child's id and the server's port."""
    server = subprocess.Popen(
        [sys.executable, "-c", FORK.format(in_child=in_child)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    child, port = map(int, server.stdout.readline().split())
    return server, child, port


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_port_is_free_once_the_server_is_dead_though_its_child_lives() -> None:
    server, child, port = start("release_server_sockets()")
    try:
        server.kill()
        server.wait()

        assert psutil.pid_exists(child)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        os.kill(child, signal.SIGKILL)


def test_connected_sockets_are_kept() -> None:
    """`start` returns only after the child has sent on the connection it inherited."""
    server, child, _ = start("release_server_sockets()")
    server.kill()
    server.wait()
    os.kill(child, signal.SIGKILL)


def test_child_dies_when_its_parent_is_killed() -> None:
    server, child, _ = start("die_with_parent()")

    server.kill()
    server.wait()

    wait_until_gone(child)
