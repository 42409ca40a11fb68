"""What a client may ask of a server: how much it may send, how long it may take to."""

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refused import Refused

BODY_SECONDS = 60  # that a client may take to send a body
CLOSE = {"Connection": "close"}  # of an answer that goes out at once, whatever the client still sends


@dataclass(frozen=True)
class Limits:
    """What the flags of the serve command set.

    Attributes:
        max_batch_size: images of several requests that run together; 1 runs every request by itself.
        max_delay: seconds that a request waits for others to run with it.
        max_body: bytes.
        max_queue: requests for one model that are being read, waiting or running; more are refused.
    """

    max_batch_size: int = 8
    max_delay: float = 0.0
    max_body: int = 16 * 2**20
    max_queue: int = 64


class BoundedBody:
    """ASGI middleware: reading a body that is too large or too slow raises Refused.

    What is left of a body is read and dropped before the answer goes out, as nginx does: a client that is still sending
    sees a reset connection instead of an answer that came early (FastAPI's ``max_body_size`` sends it early).
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body = _Body(receive, self._limit, declared=int(headers.get(b"content-length", 0)))

        async def send_when_read(message: Message) -> None:
            starts = message["type"] == "http.response.start"
            if starts and b"expect" not in headers and (b"connection", b"close") not in message["headers"]:
                await body.drop_rest()
            await send(message)

        await self._app(scope, body.receive, send_when_read)


class _Body:
    def __init__(self, receive: Receive, limit: int, declared: int) -> None:
        self._receive = receive
        self._limit = limit
        self._declared = declared
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._read = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._declared <= self._limit:
            message = await self._next()
            if self._read <= self._limit:
                return message
        raise Refused(413, f"the body is larger than {self._limit:,} bytes")

    async def drop_rest(self) -> None:
        with contextlib.suppress(Refused):  # too slow: no more is read
            while not self._complete:
                await self._next()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS} s", CLOSE) from None
        self._read += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message
