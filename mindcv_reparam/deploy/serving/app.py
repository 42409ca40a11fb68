"""The routes of the server, as an ASGI application that any ASGI server can run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ... import __version__
from . import protocol
from .batcher import Batcher
from .limits import CLOSE, BoundedBody, Limits
from .metrics import Metrics
from .model import Model
from .protocol import HEADER_LENGTH, VERSION, InferRequest
from .refused import Refused

RETRY_SECONDS = 1  # after which a client that met a full queue may come again
_THREADS = 4  # for JPEG and JSON
_T = TypeVar("_T")


class Endpoint:
    """What the routes do with one model."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics, threads: ThreadPoolExecutor) -> None:
        largest = min(limits.max_batch_size, model.largest or limits.max_batch_size)
        self.batcher = Batcher(model.name, model.run, largest, limits.max_delay, metrics)
        self.model = model
        self._metrics = metrics
        self._in_progress = metrics.in_progress.labels(model.name)
        self._free = limits.max_queue
        self._threads = threads

    def metadata(self) -> dict[str, Any]:
        return protocol.model_metadata(self.model.name, self.model.platform, self.model.input, self.model.outputs)

    async def infer(self, request: Request) -> Response:
        with self._admitted("infer"):
            body = await _body(request)
            asked = await self._in_thread(self._read_request, body, request.headers.get(HEADER_LENGTH))
            outputs = await self.batcher.run(asked.images)
            model = self.model
            answer = await self._in_thread(protocol.write_response, model.name, asked, outputs, model.manifest)
        return _binary_or_json(*answer)

    async def classify(self, request: Request, count: int) -> Response:
        with self._admitted("classify"):
            if self.model.manifest.output_kind == "features":
                raise Refused(400, f"{self.model.name} gives features, not classes: use infer")
            images = await self._in_thread(self.model.read_image, await _body(request))
            classes = self.model.classes(await self.batcher.run(images), count)
        return JSONResponse({"model_name": self.model.name, "model_version": VERSION, "classes": classes})

    @contextlib.contextmanager
    def _admitted(self, endpoint: str) -> Iterator[None]:
        with self._metrics.request(self.model.name, endpoint):
            if self._free == 0:
                raise Refused(503, f"{self.model.name} is busy: its queue is full", {"Retry-After": str(RETRY_SECONDS)})
            self._free -= 1
            self._in_progress.inc()
            try:
                yield
            except asyncio.CancelledError:  # by the server that stops, once its patience is over
                raise Refused(503, "the server stops and this was not done in time", CLOSE) from None
            finally:
                self._free += 1
                self._in_progress.dec()

    def _read_request(self, body: bytes, header_length: str | None) -> InferRequest:
        request = protocol.read_request(body, header_length, self.model.manifest)
        self.model.check(request.images.shape)
        return request

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Decoding takes milliseconds, in which the event loop serves the others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def application(models: Sequence[Model], limits: Limits) -> FastAPI:
    """The ASGI application that serves models; their names differ."""
    metrics = Metrics()
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
    endpoints = {model.name: Endpoint(model, limits, metrics, threads) for model in models}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(endpoint.batcher.work()) for endpoint in endpoints.values()]
            yield
            for task in tasks:
                task.cancel()
        threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="mindcv_reparam", version=__version__, lifespan=lifespan, redoc_url=None)
    app.add_middleware(BoundedBody, limit=limits.max_body)
    _handle_errors(app)

    async def named(name: str, version: str = VERSION) -> Endpoint:
        if name not in endpoints:
            raise Refused(404, f"no model {name!r}; this server has {', '.join(endpoints)}")
        if version != VERSION:
            raise Refused(404, f"{name} has no version {version!r}, only {VERSION}")
        return endpoints[name]

    Named = Annotated[Endpoint, Depends(named)]

    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "mindcv_reparam", "version": __version__, "extensions": list(protocol.EXTENSIONS)}

    @app.get("/v2/health/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, Any]:
        """The models were loaded and run before the server listens."""
        return {"ready": True}

    @app.post("/v2/repository/index")
    async def repository_index() -> list[dict[str, str]]:
        return [{"name": name, "version": VERSION, "state": "READY", "reason": ""} for name in endpoints]

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model_metadata(endpoint: Named) -> dict[str, Any]:
        return endpoint.metadata()

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(endpoint: Named) -> dict[str, Any]:
        return {"name": endpoint.model.name, "ready": True}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(endpoint: Named, request: Request) -> Response:
        return await endpoint.infer(request)

    @app.post("/v2/models/{name}/classify")
    @app.post("/v2/models/{name}/versions/{version}/classify")
    async def classify(endpoint: Named, request: Request, k: Annotated[int, Query(ge=1)] = 5) -> Response:
        """The ``k`` most probable classes of the image file that is the body."""
        return await endpoint.classify(request, k)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _body(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refused(415, f"bodies are taken as they are, not with Content-Encoding {encoding}")
    try:
        return await request.body()
    except ClientDisconnect:
        raise Refused(400, "the connection closed before the whole body was here") from None


def _binary_or_json(body: bytes, header_length: int | None) -> Response:
    if header_length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header_length)})


def _handle_errors(app: FastAPI) -> None:
    """Every error is a JSON object with the one key ``error``, as the protocol says."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.reason}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        reason = f"{error.detail}: {request.method} {request.url.path}"
        return JSONResponse({"error": reason}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return JSONResponse({"error": f"{problem['loc'][-1]}: {problem['msg']}"}, 400)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)
