"""The process that serves: a socket, signals, one line when it is ready."""

import signal
import socket

import uvicorn
from fastapi import FastAPI

from ...errors import UserError

KEEP_ALIVE_SECONDS = 75  # longer than the 60 that load balancers keep idle connections, so that they close first


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


def serve(app: FastAPI, listener: socket.socket, ready: str, grace_seconds: int) -> None:
    """Serve until SIGTERM or SIGINT (which raises KeyboardInterrupt at the end), then finish what is in flight.

    Args:
        ready: printed once connections are accepted.
        grace_seconds: after which unfinished requests are cut off.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn raises it again when it is done: then it means nothing more
    _Server(config, ready).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            print(self._ready, flush=True)
