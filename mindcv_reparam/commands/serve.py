"""Serve bundles over HTTP: Open Inference Protocol v2, image files, Prometheus metrics.

    python -m mindcv_reparam serve exports/visformer_tiny exports/fastvit_t8 --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/v2/models/visformer_tiny/classify?k=3'

A model's name is its folder's. SIGTERM and Ctrl-C stop the server: it takes no more connections, finishes what is in
flight and exits, with status 0 after SIGTERM and 130 after Ctrl-C. See docs/serving.md.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mindcv_reparam.deploy.runners import BACKENDS, backend_for
from mindcv_reparam.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = " (default: %(default)s)"
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folder that export.py wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all" + default)
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help="0 takes a free one" + default)
    parser.add_argument("--backend", choices=BACKENDS, help="what runs the models (default: the first that fits each)")
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
        "--grace_seconds", type=_whole(0), default=30, help="to finish what is in flight when stopped" + default
    )


def run(args: argparse.Namespace) -> int:
    _check_names(args.bundles)
    backends = [backend_for(bundle, args.backend) for bundle in args.bundles]
    from mindcv_reparam.deploy.serving import server

    with server.bind(args.host, args.port) as listener:
        if "mindspore" in backends:
            from mindcv_reparam.runtime import prepare

            prepare(None)
        from mindcv_reparam.deploy.serving.app import application
        from mindcv_reparam.deploy.serving.limits import Limits
        from mindcv_reparam.deploy.serving.model import load_model

        models = [load_model(bundle, backend) for bundle, backend in zip(args.bundles, backends)]
        limits = Limits(args.max_batch_size, args.max_delay_ms / 1000, args.max_body_mb * 2**20, args.max_queue)
        names = ", ".join(f"{model.name} ({model.platform})" for model in models)
        server.serve(
            application(models, limits), listener, f"{server.url(listener)} serves {names}", args.grace_seconds
        )
    return 0


def _check_names(bundles: Sequence[str]) -> None:
    folders: dict[str, str] = {}
    for bundle in bundles:
        name = Path(bundle).resolve().name
        if name in folders:
            raise UserError(f"{folders[name]} and {bundle} would both be the model {name}: rename one of the folders")
        folders[name] = bundle


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
