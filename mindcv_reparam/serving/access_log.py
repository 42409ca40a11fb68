"""A line of JSON per request, written by a thread: a terminal or a pipe that nobody reads does not stop the server."""

import contextlib
import json
import queue
import re
import secrets
import threading
import time
from datetime import UTC, datetime
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOST_WAITING = 10_000  # lines; more are lost
_ID = b"x-request-id"
_FIT = re.compile(rb"[\x21-\x7e]{1,128}")  # to be repeated in an answer and a log


class AccessLog:
    """Lines for a stream that another thread writes them to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def add(self, **values: str | int | float | None) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(json.dumps({"time": now, **values}) + "\n")

    def close(self) -> None:
        """Write what waits, within a second."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=1)
        self._thread.join(1)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            while (line := self._lines.get()) is not None:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()


class Logged:
    """ASGI middleware: a line for every answer, and for every request whose client went away before it.

    A request keeps the X-Request-ID that the client or its proxy gave it, or gets one; the answer has it, too.
    """

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status, sent = None, 0
        given = dict(scope["headers"]).get(_ID, b"")
        number = given if _FIT.fullmatch(given) else secrets.token_hex(8).encode()

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_ID, number)]
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            status = status or 500
            raise
        finally:
            query = scope["query_string"].decode("latin-1")
            self._log.add(
                id=number.decode("ascii"),
                client="{}:{}".format(*scope["client"]) if scope["client"] else None,
                method=scope["method"],
                path=scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""),
                model=scope.get("path_params", {}).get("name"),
                status=status,
                bytes=sent,
                ms=round(1000 * (time.perf_counter() - start), 3),
            )
