"""The one way in which a request fails that is not the server's fault."""

from collections.abc import Mapping


class Refused(Exception):
    """A request that gets the HTTP ``status`` and a JSON object with the reason instead of an answer."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})
