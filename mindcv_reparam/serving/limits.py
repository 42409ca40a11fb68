"""What a client may ask of a server: how much it may send, how long it may take to."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindcv_reparam.serving.refused import Refused

CLOSE = {"Connection": "close"}  # of an answer that goes out at once, whatever the client still sends
RETRY = {"Retry-After": "1"}  # seconds after which a client that met a full server may come again


@dataclass(frozen=True)
class Limits:
    """What the flags of the serve command set.

    Attributes:
        max_batch_size: images of several requests that run together; 1 runs every request by itself.
        max_delay: seconds that a request waits for others to run with it.
        max_body: bytes.
        max_queue: requests for one model that are here as a whole and not answered yet; more are refused.
        max_bodies: bytes of all bodies that are being read, waiting or running; beyond them the one that has been
            unfinished for the longest is refused.
        body_seconds: that a client may take to send a body.
        max_connections: at a time; beyond them the one is closed that has waited longest for its client.
        head_seconds: that a client may take to send the header of a request.
        write_seconds: that a client may leave an answer unread.
        max_decode: bytes of memory that decoding a large image may take; one is decoded at a time.
        decode_seconds: that decoding an image may take.
    """

    max_batch_size: int = 8
    max_delay: float = 0.0
    max_body: int = 16 * 2**20
    max_queue: int = 64
    max_bodies: int = 256 * 2**20
    body_seconds: float = 60.0
    max_connections: int = 512
    head_seconds: float = 10.0
    write_seconds: float = 60.0
    max_decode: int = 512 * 2**20
    decode_seconds: float = 10.0


class BoundedBody:
    """ASGI middleware: reading a body that is too large or too slow raises Refused, as does one too many.

    What is left of a body is read and dropped before the answer goes out, as nginx does: a client that is still sending
    sees a reset connection instead of an answer that came early (FastAPI's ``max_body_size`` sends it early).
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._bodies = _Bodies(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        with self._bodies.body(receive, declared=int(headers.get(b"content-length", 0))) as body:

            async def send_when_read(message: Message) -> None:
                starts = message["type"] == "http.response.start"
                if starts and b"expect" not in headers and (b"connection", b"close") not in message["headers"]:
                    await body.drop_rest()
                await send(message)

            await self._app(scope, body.receive, send_when_read)


class _Bodies:
    """Those of all requests that are not answered yet, in the order of their arrival."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all: dict[_Body, None] = {}

    @contextlib.contextmanager
    def body(self, receive: Receive, declared: int) -> Iterator["_Body"]:
        body = _Body(self, receive, declared)
        self._all[body] = None
        try:
            yield body
        finally:
            del self._all[body]

    def make_room(self) -> None:
        """Refuse the oldest unfinished bodies until the others fit; where all are finished, the last one."""
        held = sum(body.held for body in self._all)
        for body in (*(body for body in self._all if not body.complete), *reversed(self._all)):
            if held <= self.limits.max_bodies:
                return
            held -= body.held
            body.refuse()


class _Body:
    """One that is being received.

    Attributes:
        held: bytes that are kept in memory.
        complete: whether its last byte is here.
    """

    def __init__(self, bodies: _Bodies, receive: Receive, declared: int) -> None:
        self._bodies = bodies
        self._limits = bodies.limits
        self._receive = receive
        self._declared = declared
        self._deadline = asyncio.get_running_loop().time() + bodies.limits.body_seconds
        self._timeout: asyncio.Timeout | None = None
        self._refused = False
        self.held = 0
        self.complete = False

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        limit = self._limits.max_body
        if self._declared <= limit:
            message = await self._next()
            self.held += len(message.get("body", b""))
            if self.held <= limit:
                self._bodies.make_room()
                self._check_room()
                return message
        self.held = 0
        raise Refused(413, f"the body is larger than {limit:,} bytes")

    async def drop_rest(self) -> None:
        with contextlib.suppress(Refused, asyncio.CancelledError):  # too slow, or the server stops: no more is read
            while not self.complete:
                await self._next()

    def refuse(self) -> None:
        """Give its memory to others: what waits for its next bytes raises Refused."""
        self._refused = True
        self.held = 0
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def _next(self) -> Message:
        self._check_room()
        try:
            async with asyncio.timeout_at(self._deadline) as self._timeout:
                message = await self._receive()
        except TimeoutError:
            self._check_room()
            reason = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise Refused(408, reason, CLOSE) from None
        finally:
            self._timeout = None
        self.complete = not message.get("more_body", False)
        return message

    def _check_room(self) -> None:
        if self._refused:
            raise Refused(503, "the server is busy: bodies of other requests fill its memory", {**CLOSE, **RETRY})
