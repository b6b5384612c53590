"""Who takes part, and how each is started on the gateway's core in front of the fake engine.

The routers run with their cheapest policy (round robin), without retries' bookkeeping being asked for and
with their limits out of the way; nginx is Debian's, in one process, without an access log.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtest.benchmarks.gateway import ours
from loadtest.benchmarks.gateway.load import Target
from loadtest.benchmarks.gateway.processes import PinnedProcess, free_port

GATEWAY_CORE: Final = 0
ROUTERS: Final = ("vllm-router", "sglang-router")
OURS: Final = "loraway"
DIRECT: Final = "direct"
_NO_KEY: Final = "sk-bench"


class Missing(Exception):
    """A contender that cannot take part, and why."""


@dataclass(slots=True)
class Contender:
    """One gateway in front of the engine; `process` is None for the direct connection."""

    name: str
    target: Target
    process: PinnedProcess | None = None
    close: Callable[[], None] = field(default=lambda: None)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
        self.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the contenders find things."""

    engine_port: int
    work: Path
    routers_python: Path


def start_direct(place: Place) -> Contender:
    return Contender(DIRECT, Target(place.engine_port, "bench-engine", _NO_KEY))


def start_nginx(place: Place) -> Contender:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise Missing("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    config = place.work / "nginx.conf"
    config.write_text(
        _NGINX.format(
            port=port, engine=place.engine_port, work=place.work, error_log=place.work / "nginx.err"
        )
    )
    command = [binary, "-p", str(place.work), "-c", str(config), "-e", str(place.work / "nginx.err")]
    return _started("nginx", place, command, port)


def start_vllm_router(place: Place) -> Contender:
    return _start_router("vllm-router", "vllm_router.launch_router", place)


def start_sglang_router(place: Place) -> Contender:
    return _start_router("sglang-router", "sglang_router.launch_router", place)


def start_naive(place: Place) -> Contender:
    port = free_port()
    command = [sys.executable, "-m", "loadtest.benchmarks.gateway.naive", str(port)]
    environment = {"BENCH_ENGINE_URL": f"http://127.0.0.1:{place.engine_port}"}
    return _started("FastAPI + httpx", place, command, port, environment)


def start_ours(place: Place) -> Contender:
    prepared = ours.prepare(place.work / "loraway", place.engine_port)
    target = Target(prepared.port, ours.ALIAS, prepared.api_key)
    process = PinnedProcess(
        prepared.command, GATEWAY_CORE, place.work / "loraway.log", prepared.environment, prepared.pass_fds
    )
    return Contender(OURS, target, process, prepared.close)


#: In the order of the table.
STARTERS: Final[dict[str, Callable[[Place], Contender]]] = {
    DIRECT: start_direct,
    "nginx": start_nginx,
    "vllm-router": start_vllm_router,
    "sglang-router": start_sglang_router,
    "FastAPI + httpx": start_naive,
    OURS: start_ours,
}


def _start_router(name: str, module: str, place: Place) -> Contender:
    if not place.routers_python.exists():
        raise Missing(f"{place.routers_python} is not there; make bench-gateway installs it")
    port = free_port()
    command = [
        *(str(place.routers_python), "-m", module),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{place.engine_port}"),
        *("--policy", "round_robin", "--log-level", "error"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        *("--max-concurrent-requests", "4096"),
    ]
    return _started(name, place, command, port)


def _started(
    name: str, place: Place, command: list[str], port: int, environment: dict[str, str] | None = None
) -> Contender:
    log = place.work / f"{name.replace(' ', '')}.log"
    process = PinnedProcess(command, GATEWAY_CORE, log, {**os.environ, **(environment or {})})
    return Contender(name, Target(port, "bench-engine", _NO_KEY), process)


_NGINX: Final = """
daemon off; master_process off; pid {work}/nginx.pid; error_log {error_log} error;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
  client_max_body_size 64m; client_body_buffer_size 256k; large_client_header_buffers 4 64k;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
"""
