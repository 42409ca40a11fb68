"""The process that serves: a socket, signals, one line when it is ready."""

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from mindcv_reparam.errors import UserError
from mindcv_reparam.serving.access_log import AccessLog
from mindcv_reparam.serving.connection import KEEP_ALIVE_SECONDS, Connection
from mindcv_reparam.serving.limits import Limits

_BACKLOG = 128  # connections that the system holds until they are accepted, all at once
_OTHER_FILES = 128  # that the process has open besides connections: libraries, models, pipes


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket at an address, not listening yet; port 0 takes a free one.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; see --host and --port") from None
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(count: int) -> None:
    """Raise the limit of open files to what ``count`` connections need.

    Raises:
        UserError: the system does not allow as many.
    """
    needed = count + _BACKLOG + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"--max_connections {count} needs {needed} open files, the system allows {hard}: give at most "
            f"{max(0, hard - _BACKLOG - _OTHER_FILES)}, or raise `ulimit -Hn`"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def serve(
    app: FastAPI, listener: socket.socket, ready: str, grace_seconds: int, limits: Limits, log: AccessLog | None
) -> NoReturn:
    """Serve until SIGTERM or SIGINT, finish what is in flight and end the process, with status 0 or 130 (SIGINT).

    A second SIGINT ends it at once.

    Args:
        ready: printed once connections are accepted.
        grace_seconds: after which unfinished requests are cut off.
    """
    Connection.limits = limits
    Connection.linger_seconds = min(1.0, grace_seconds / 2)
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",  # what clients do wrong is in their answers and in the access log
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
    _Server(config, ready, log).run(sockets=[listener])
    raise AssertionError("the server ends the process")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: str, log: AccessLog | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._log = log
        self._signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            print(self._ready, flush=True)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # every second
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_overdue()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE_HEADER]
        await super().shutdown(sockets)
        if self._log is not None:
            self._log.close()
        # A model that runs in a thread cannot be stopped, and a process that ends in the usual way waits for it.
        _leave(128 + signal.SIGINT if self._signal == signal.SIGINT else 0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield  # the process ends in shutdown: there is nothing to restore

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            _leave(128 + sig)
        self.should_exit = True
        self._signal = self._signal or sig


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
