"""The routes of the server, as an ASGI application that any ASGI server can run."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mindcv_reparam import __version__
from mindcv_reparam.bundle.triton import model_config
from mindcv_reparam.serving import documentation, protocol
from mindcv_reparam.serving.access_log import AccessLog, Logged
from mindcv_reparam.serving.batcher import Batcher
from mindcv_reparam.serving.decoders import Decoders
from mindcv_reparam.serving.limits import CLOSE, RETRY, BoundedBody, Limits
from mindcv_reparam.serving.metrics import Metrics
from mindcv_reparam.serving.model import Model
from mindcv_reparam.serving.protocol import HEADER_LENGTH, VERSION
from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.tasks.results import Results

_LARGE_BODY = 2**20  # bytes
_PAUSE = 0.02  # seconds between two of them, in which the event loop gets Python's lock
_IMAGE_FILE = "the bytes of an image file, as curl --data-binary @photo.jpg does"
_T = TypeVar("_T")


class _Threads:
    """For JSON, which takes milliseconds in which the event loop serves the others; one thread is for large bodies.

    Those keep Python's lock for longer, and several of them would leave the event loop little of it.
    """

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(2, thread_name_prefix="json")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large json")

    async def run(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """The result of a function that reads or writes ``size`` bytes."""
        run = asyncio.get_running_loop().run_in_executor
        if size <= _LARGE_BODY:
            return await run(self._small, function, *arguments)
        await run(self._large, time.sleep, _PAUSE)
        return await run(self._large, function, *arguments)

    def stop(self) -> None:
        for threads in (self._small, self._large):
            threads.shutdown(wait=False, cancel_futures=True)


class Endpoint:
    """What the routes do with one model."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics, threads: _Threads, decoders: Decoders) -> None:
        largest = min(limits.max_batch_size, model.largest or limits.max_batch_size)
        self.batcher = Batcher(model.name, model.run, largest, limits.max_delay, metrics)
        self.model = model
        self._together, self._delay = largest, limits.max_delay
        self._metrics = metrics
        self._in_progress = metrics.in_progress.labels(model.name)
        self._free = limits.max_queue
        self._threads = threads
        self._decoders = decoders

    def metadata(self) -> dict[str, Any]:
        return protocol.model_metadata(self.model.name, self.model.platform, self.model.inputs, self.model.outputs)

    def config(self) -> dict[str, Any]:
        """The model as Triton configures models. Requests of fewer images than a file takes are filled up, so that any
        has a batch here; those of more than run together run alone."""
        model = self.model
        largest = model.largest or self._together
        config = model_config(model.name, model.platform, model.manifest, model.inputs, model.outputs, largest)
        if self._together > 1:
            config["dynamic_batching"] = {"max_queue_delay_microseconds": round(1e6 * self._delay)}
        return config

    def statistics(self) -> dict[str, Any]:
        return self._metrics.statistics[self.model.name].record(self.model.name, VERSION)

    async def infer(self, request: Request) -> Response:
        with self._counted("infer"):
            body = await _body(request, 'the JSON object of an inference request, {"inputs": …}', "Invalid JSON")
            with self._place():
                length = request.headers.get(HEADER_LENGTH)
                asked = await self._threads.run(len(body), protocol.read_request, body, length, self.model)
                outputs = await self.batcher.run(*asked.inputs)
                model = self.model
                size = sum(output.nbytes for output in outputs)
                answer = await self._threads.run(
                    size, protocol.write_response, model.name, asked, outputs, model.manifest
                )
        return _binary_or_json(*answer)

    async def tell(self, request: Request, route: str, most: int, least: float) -> Response:
        """What an image file shows, by the task whose route it is."""
        with self._counted(route):
            results, kind = self.model.results, self.model.manifest.output_kind
            if results.route != route:
                raise Refused(400, f"{self.model.name} gives {results.what}: use {results.route}")
            if not results.tells(kind):
                raise Refused(400, f"{self.model.name} gives {kind}, not {results.what}: use infer")
            body = await _body(request, _IMAGE_FILE, "not an image")
            if body[:1] in b"{[" and request.headers.get("content-type", "").startswith("application/json"):
                raise Refused(400, f"not an image, but JSON: send {_IMAGE_FILE}; infer takes tensors as JSON")
            with self._place():
                tensor, size = await self._decoders.tensor(body, self.model.name, self.model.steps)
                inputs = self.model.inputs_of(tensor, size)
                self.model.check(*(one.shape for one in inputs))
                told = self.model.tell(await self.batcher.run(*inputs), size, most, least)
        return JSONResponse({"model_name": self.model.name, "model_version": VERSION, **told})

    @contextlib.contextmanager
    def _counted(self, endpoint: str) -> Iterator[None]:
        with self._metrics.request(self.model.name, endpoint), self._in_progress.track_inprogress():
            try:
                yield
            except asyncio.CancelledError:  # by the server that stops, once its patience is over
                raise Refused(503, "the server stops and this was not done in time", CLOSE) from None

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One in the model's queue; only who has sent a whole body takes one."""
        if self._free == 0:
            raise Refused(503, f"{self.model.name} is busy: its queue is full", RETRY)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def application(models: Sequence[Model], limits: Limits, access_log: AccessLog | None = None) -> FastAPI:
    """The ASGI application that serves models; their names differ."""
    metrics = Metrics()
    threads = _Threads()
    decoders = Decoders(limits.max_decode, limits.decode_seconds)
    endpoints = {model.name: Endpoint(model, limits, metrics, threads, decoders) for model in models}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await decoders.start()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(endpoint.batcher.work()) for endpoint in endpoints.values()]
            yield
            for task in tasks:
                task.cancel()
        decoders.stop()
        threads.stop()

    app = FastAPI(title="mindcv_reparam", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BoundedBody, limits=limits)
    if access_log is not None:
        app.add_middleware(Logged, log=access_log)
    _handle_errors(app)
    _add_routes(app, endpoints, metrics)
    _add_model_routes(app, endpoints)
    return app


def _add_routes(app: FastAPI, endpoints: Mapping[str, Endpoint], metrics: Metrics) -> None:
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

    @app.get("/v2/models/stats")
    async def all_statistics() -> dict[str, Any]:
        return {"model_stats": [endpoint.statistics() for endpoint in endpoints.values()]}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def routes() -> str:
        return documentation.page(app.openapi())


def _add_model_routes(app: FastAPI, endpoints: Mapping[str, Endpoint]) -> None:
    async def named(name: str, version: str = VERSION) -> Endpoint:
        if name not in endpoints:
            raise Refused(404, f"no model {name!r}; this server has {', '.join(endpoints)}")
        if version != VERSION:
            raise Refused(404, f"{name} has no version {version!r}, only {VERSION}")
        return endpoints[name]

    Named = Annotated[Endpoint, Depends(named)]

    @app.get("/v2/models/{name}", responses=documentation.NO_MODEL)
    @app.get("/v2/models/{name}/versions/{version}", responses=documentation.NO_MODEL)
    async def model_metadata(endpoint: Named) -> dict[str, Any]:
        return endpoint.metadata()

    @app.get("/v2/models/{name}/ready", responses=documentation.NO_MODEL)
    @app.get("/v2/models/{name}/versions/{version}/ready", responses=documentation.NO_MODEL)
    async def model_ready(endpoint: Named) -> dict[str, Any]:
        return {"name": endpoint.model.name, "ready": True}

    @app.get("/v2/models/{name}/config", responses=documentation.NO_MODEL)
    @app.get("/v2/models/{name}/versions/{version}/config", responses=documentation.NO_MODEL)
    async def model_configuration(endpoint: Named) -> dict[str, Any]:
        return endpoint.config()

    @app.get("/v2/models/{name}/stats", responses=documentation.NO_MODEL)
    @app.get("/v2/models/{name}/versions/{version}/stats", responses=documentation.NO_MODEL)
    async def statistics(endpoint: Named) -> dict[str, Any]:
        return {"model_stats": [endpoint.statistics()]}

    @app.post("/v2/models/{name}/infer", **documentation.INFER)
    @app.post("/v2/models/{name}/versions/{version}/infer", **documentation.INFER)
    async def infer(endpoint: Named, request: Request) -> Response:
        return await endpoint.infer(request)

    for results in {endpoint.model.results.route: endpoint.model.results for endpoint in endpoints.values()}.values():
        _add_image_route(app, results, Named)


def _add_image_route(app: FastAPI, results: Results[Any], named: Any) -> None:
    """That of one task; ``named`` gives the endpoint of the path."""

    async def tell(
        endpoint: named,
        request: Request,
        k: Annotated[int, Query(ge=1)] = results.most,
        threshold: Annotated[float, Query(ge=0, le=1)] = results.least,
    ) -> Response:
        return await endpoint.tell(request, results.route, k, threshold)

    tell.__name__ = results.route
    tell.__doc__ = f"The ``k`` most probable {results.what} of the image file that is the body, from ``threshold`` on."
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.post(f"{path}/{results.route}", **documentation.image_route(results.answer))(tell)


async def _body(request: Request, wanted: str, wrong: str) -> bytes:
    """The body of a request, which has to be what ``wanted`` says; ``wrong`` is said of an empty one."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refused(415, f"bodies are taken as they are, not with Content-Encoding {encoding}")
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refused(415, f"the body is a form (curl -F makes one): send {wanted}")
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Refused(400, "the connection closed before the whole body was here") from None
    if not body:
        raise Refused(400, f"{wrong}: the body is empty, send {wanted}")
    return body


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
        return JSONResponse({"error": f"the server failed: {type(error.__cause__ or error).__name__}"}, 500)
