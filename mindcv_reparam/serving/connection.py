"""HTTP/1.1 connections that end: whoever neither sends nor reads does not hold one for long."""

import asyncio
from collections import Counter
from collections.abc import Collection

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from mindcv_reparam.serving.limits import Limits

KEEP_ALIVE_SECONDS = 75  # longer than the 60 that load balancers keep idle connections, so that they close first


class Connection(H11Protocol):
    """uvicorn's connection with the bounds that it lacks.

    Beyond ``max_connections`` one is closed that waits for its client: of the address that has the most of these, the
    one that has waited longest. So a client that sends its request at once is answered, whatever others do.
    """

    limits = Limits()  # of the one server in this process
    linger_seconds = 0.0  # for which a server that stops answers on idle connections: a request may be under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing tells of every byte that the client does not take
        self._idle = False  # between two requests, where uvicorn's own time limit holds
        self._waits_since = self.loop.time()
        self._unread_since: float | None = None
        if len(self.connections) > self.limits.max_connections:
            victim = _longest_waiting([other for other in self.connections if isinstance(other, Connection)])
            self.connections.discard(victim)  # at once, others may arrive before it is closed
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self._waits_since = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._idle = not self.conn.trailing_data[0]
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def waits_for_client(self) -> bool:
        """Whether no whole request is here; ``client`` and ``waits_since`` tell for whom and since when."""
        return not self._answers() or self.cycle.more_body

    @property
    def waits_since(self) -> float:
        return self._waits_since

    def close_if_overdue(self) -> None:
        """Close what began a header and did not end it, or does not read its answer."""
        now = self.loop.time()
        slow = not self._answers() and not self._idle and now - self._waits_since > self.limits.head_seconds
        if slow or (self._unread_since is not None and now - self._unread_since > self.limits.write_seconds):
            self.transport.abort()

    def shutdown(self) -> None:
        """Announce the end in the answer under way; without one, wait a moment for a request under way."""
        if self._answers():
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]
        else:
            self.loop.call_later(self.linger_seconds, self._close_if_unasked)

    def _close_if_unasked(self) -> None:
        if not self._answers():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """As all errors are told."""
        body = b'{"error":"%s"}' % msg.encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _longest_waiting(connections: Collection[Connection]) -> Connection:
    """Of the address with the most connections that wait for their client, the first; the newest is one of them."""
    waiting = [connection for connection in connections if connection.waits_for_client()]
    count = Counter(connection.client and connection.client[0] for connection in waiting)
    return max(waiting, key=lambda one: (count[one.client and one.client[0]], -one.waits_since))
