"""Serve bundles over HTTP: Open Inference Protocol v2, image files, Prometheus metrics.

    python -m mindcv_reparam serve exports/visformer_tiny flowers=exports/fastvit_t8 --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/v2/models/visformer_tiny/classify?k=3'

A model's name is its folder's, or what stands before the "=". SIGTERM and Ctrl-C stop the server: it takes no more
connections, finishes what is in flight and exits, with status 0 after SIGTERM and 130 after Ctrl-C. docs/serving.md has
the rest.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindcv_reparam.errors import UserError, require
from mindcv_reparam.run.runners import BACKENDS, backend_for

if TYPE_CHECKING:
    from mindcv_reparam.serving.limits import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = " (default: %(default)s)"
    parser.add_argument("bundles", nargs="+", metavar="[NAME=]BUNDLE", help="folder that export.py wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all" + default)
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help="0 takes a free one" + default)
    parser.add_argument("--backend", choices=BACKENDS, help="what runs the models (default: the first that fits each)")
    parser.add_argument("--threads", type=_whole(1, 1024), help="of onnxruntime per model (default: one per processor)")
    parser.add_argument(
        "--max_batch_size", type=_whole(1), default=8, help="images of several requests to run together" + default
    )
    parser.add_argument(
        "--max_delay_ms", type=_milliseconds, default=0.0, help="that a request waits for others to join it" + default
    )
    parser.add_argument(
        "--max_queue", type=_whole(1), default=64, help="requests of a model at a time, others get 503" + default
    )
    parser.add_argument("--max_body_mb", type=_whole(1), default=16, help="MiB of a request" + default)
    parser.add_argument(
        "--max_bodies_mb", type=_whole(1), default=256, help="MiB of all requests at a time, whole or not" + default
    )
    parser.add_argument(
        "--max_decode_mb", type=_whole(1), default=512, help="MiB that decoding a large image may take" + default
    )
    parser.add_argument("--max_connections", type=_whole(1, 100_000), default=512, help="at a time" + default)
    parser.add_argument("--head_seconds", type=_whole(1), default=10, help="to send a header in" + default)
    parser.add_argument("--body_seconds", type=_whole(1), default=60, help="to send a body in" + default)
    parser.add_argument("--write_seconds", type=_whole(1), default=60, help="to read an answer in" + default)
    parser.add_argument("--decode_seconds", type=_whole(1), default=10, help="to decode an image in" + default)
    parser.add_argument(
        "--grace_seconds", type=_whole(0), default=30, help="to finish what is in flight when stopped" + default
    )
    parser.add_argument("--no_access_log", action="store_true", help="no line on stderr for every request")


def run(args: argparse.Namespace) -> int:
    bundles = _named(args.bundles)
    require("fastapi", "prometheus_client", "uvicorn")
    backends = [backend_for(bundle, args.backend) for bundle in bundles.values()]
    from mindcv_reparam.serving import server

    server.allow_connections(args.max_connections)
    with server.bind(args.host, args.port) as listener:
        if "mindspore" in backends:
            from mindcv_reparam.runtime import prepare

            prepare(None)
        from mindcv_reparam.serving.access_log import AccessLog
        from mindcv_reparam.serving.app import application
        from mindcv_reparam.serving.model import load_model

        models = [
            load_model(bundle, backend, name, args.threads)
            for (name, bundle), backend in zip(bundles.items(), backends)
        ]
        names = ", ".join(f"{model.name} ({model.platform})" for model in models)
        log = AccessLog(sys.stderr) if not args.no_access_log else None
        app = application(models, _limits(args), log)
        server.serve(app, listener, f"{server.url(listener)} serves {names}", args.grace_seconds, _limits(args), log)
    return 0


def _limits(args: argparse.Namespace) -> "Limits":
    from mindcv_reparam.serving.limits import Limits

    return Limits(
        max_batch_size=args.max_batch_size,
        max_delay=args.max_delay_ms / 1000,
        max_body=args.max_body_mb * 2**20,
        max_queue=args.max_queue,
        max_bodies=args.max_bodies_mb * 2**20,
        max_decode=args.max_decode_mb * 2**20,
        max_connections=args.max_connections,
        head_seconds=args.head_seconds,
        body_seconds=args.body_seconds,
        write_seconds=args.write_seconds,
        decode_seconds=args.decode_seconds,
    )


def _named(bundles: Sequence[str]) -> dict[str, str]:
    """The folders by the names of their models."""
    folders: dict[str, str] = {}
    for word in bundles:
        name, equals, bundle = word.partition("=")
        if not equals or Path(word).is_dir():  # folders may have any name
            name, bundle = Path(word).resolve().name, word
        if not name or "/" in name or name == "stats":
            raise UserError(f"{word}: {name!r} is no name of a model: take one without slashes, other than stats")
        if name in folders:
            raise UserError(
                f"{folders[name]} and {bundle} would both be the model {name}: give one another name, NAME={bundle}"
            )
        folders[name] = bundle
    return folders


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}")
        return int(text)

    return parse


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 60000, got {text!r}")
    return value
