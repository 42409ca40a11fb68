"""What Prometheus can read of a server, and what Triton's clients ask of it."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.serving.statistics import Statistics

_T = TypeVar("_T")
_PREFIX = "mindcv_reparam_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own; all but those of the process have a label ``model``.

    Attributes:
        statistics: by model.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.statistics: defaultdict[str, Statistics] = defaultdict(Statistics)
        ProcessCollector(registry=self.registry)
        self.requests = self._new(Counter, "requests", "Requests answered", ("endpoint", "status"))
        self.in_progress = self._new(Gauge, "requests_in_progress", "Requests being read, waiting or running")
        self.request_seconds = self._new(
            Histogram, "request_seconds", "From a request's header to its answer", ("endpoint",), buckets=_SECONDS
        )
        self.wait_seconds = self._new(
            Histogram, "wait_seconds", "From a request's arrival at the model to its batch's start", buckets=_SECONDS
        )
        self.batch_seconds = self._new(Histogram, "batch_seconds", "A run of the model", buckets=_SECONDS)
        self.batch_images = self._new(
            Histogram, "batch_images", "Images of clients that ran together, without padding", buckets=_IMAGES
        )

    @contextlib.contextmanager
    def request(self, model: str, endpoint: str) -> Iterator[None]:
        """Count and time what the body does."""
        start = time.perf_counter()
        self.statistics[model].arrived()
        status = 500
        try:
            yield
            status = 200
        except Refused as refused:
            status = refused.status
            raise
        finally:
            seconds = time.perf_counter() - start
            self.statistics[model].answered(seconds, status == 200)
            self.requests.labels(model, endpoint, status).inc()
            self.request_seconds.labels(model, endpoint).observe(seconds)

    def _new(self, kind: Callable[..., _T], name: str, text: str, labels: Sequence[str] = (), **options: Any) -> _T:
        return kind(_PREFIX + name, text, ("model", *labels), registry=self.registry, **options)
