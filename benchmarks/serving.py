"""Load a server with concurrent clients, with dynamic batching and without: throughput and latency.

    python benchmarks/serving.py                               # fastvit_t8, untrained, 3 s per measurement
    python benchmarks/serving.py --bundle exports/fastvit_sa12 --seconds 20 --concurrency 1 4 16 64

A bundle is served by ``python -m mindcv_reparam serve`` in a process of its own. Every client is Triton's, in a thread,
and sends one image as a binary tensor after the other. The settings take turns, round by round, so that other work on
the machine disturbs all of them; a row is what its rounds gave together. Writes serving.md, serving.json, serving.png.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mindcv_reparam.bundle.manifest import Manifest, read_manifest  # noqa: E402
from mindcv_reparam.errors import Parser, run_script  # noqa: E402
from mindcv_reparam.files import written_whole  # noqa: E402

SETTINGS = {
    "off": ["--max_batch_size", "1"],
    "up to 8, no delay": ["--max_batch_size", "8", "--max_delay_ms", "0"],
    "up to 8, 5 ms": ["--max_batch_size", "8", "--max_delay_ms", "5"],
}
ROUNDS = len(SETTINGS)
_IMAGES = "mindcv_reparam_batch_images"
WARM_UP = 0.5  # seconds before each measurement
HEADER = ("batching", "clients", "images/s", "p50 ms", "p99 ms", "images per batch")


@dataclass
class Row:
    """What one setting gave at one concurrency; latencies in milliseconds."""

    batching: str
    clients: int
    images_per_second: float
    p50: float
    p99: float
    images_per_batch: float

    def cells(self) -> tuple[str, ...]:
        numbers = (self.images_per_second, self.p50, self.p99, self.images_per_batch)
        return self.batching, str(self.clients), *(f"{number:.1f}" for number in numbers)


@dataclass
class Load:
    """Latencies in seconds, and how many batches of how many images the server ran meanwhile."""

    latencies: list[float]
    seconds: float
    batches: float
    images: float


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="to serve; one of an untrained fastvit_t8 by default")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16], help="clients at a time")
    parser.add_argument("--seconds", type=float, default=3.0, help="per setting and concurrency (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the table and the plot")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or _untrained_bundle(Path(folder, "fastvit_t8"))
        manifest = read_manifest(bundle)
        loads: dict[tuple[str, int], list[Load]] = {}
        with contextlib.ExitStack() as stack:
            servers = {name: stack.enter_context(_server(bundle, options)) for name, options in SETTINGS.items()}
            for turn in range(ROUNDS):
                for clients in args.concurrency:
                    for name in _rotated(list(servers), turn):
                        load = _measure(servers[name], bundle.name, manifest, clients, args.seconds / ROUNDS)
                        loads.setdefault((name, clients), []).append(load)
    rows = [_row(name, clients, found) for (name, clients), found in sorted(loads.items(), key=_order)]
    _write(args.output, bundle.name, manifest, rows)
    return 0


def _rotated(names: list[str], turn: int) -> list[str]:
    """Each comes first, second and last once: a machine that was idle for a moment is faster."""
    first = turn % len(names)
    return names[first:] + names[:first]


def _order(item: tuple[tuple[str, int], object]) -> tuple[int, int]:
    name, clients = item[0]
    return clients, list(SETTINGS).index(name)


def _untrained_bundle(folder: Path) -> Path:
    """Export a fused fastvit_t8 with random weights as ONNX: as fast as a trained one."""
    checkpoint = folder.with_suffix(".ckpt")
    code = (
        "import sys; from mindcv_reparam.runtime import prepare; prepare('CPU', seed=0)\n"
        "from mindcv_reparam import create_model\n"
        "from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint\n"
        "from mindcv_reparam.registry import model_info\n"
        "hparams = dict(num_classes=1000, in_channels=3, img_size=256)\n"
        "info = CheckpointInfo('fastvit_t8', hparams, None, dict(model_info('fastvit_t8').preprocessing))\n"
        "save_checkpoint(sys.argv[1], create_model('fastvit_t8', **hparams), info)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(checkpoint)], check=True, env=_environment())
    export = [sys.executable, str(ROOT / "export.py"), "--ckpt_path", str(checkpoint), "--output", str(folder)]
    export += ["--file_format", "ONNX", "--export_batch_size", "dynamic"]
    subprocess.run(export, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    return folder


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def _server(bundle: Path, options: Sequence[str]) -> Iterator[str]:
    """Address of a server that runs in the body."""
    command = [sys.executable, "-m", "mindcv_reparam", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        try:
            line = job.stdout.readline()
            if not line:
                raise RuntimeError(f"the server of {bundle} did not start")
            yield line.split()[0].removeprefix("http://")
        finally:
            job.terminate()


def _measure(address: str, model: str, manifest: Manifest, clients: int, seconds: float) -> Load:
    import tritonclient.http as triton

    spec = manifest.input
    size = manifest.preprocessing["image_resize"]
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, 3, height, width) if manifest.input_kind == "normalized" else (1, height, width, 3)
    images = triton.InferInput(spec.name, shape, "UINT8" if spec.dtype == "uint8" else "FP32")
    images.set_data_from_numpy(np.random.default_rng(0).integers(256, size=shape).astype(spec.dtype))
    latencies: list[float] = []

    def client(until: float) -> None:
        connection = triton.InferenceServerClient(address)
        while (start := time.perf_counter()) < until:
            connection.infer(model, [images])
            latencies.append(time.perf_counter() - start)

    def load(duration: float) -> float:
        start = time.perf_counter()
        threads = [threading.Thread(target=client, args=(start + duration,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    load(WARM_UP)
    latencies.clear()
    before = _batches(address)
    elapsed = load(seconds)
    count, images_run = (after - earlier for after, earlier in zip(_batches(address), before))
    return Load(latencies, elapsed, count, images_run)


def _batches(address: str) -> tuple[float, float]:
    """Batches that a server has run, and the images in them."""
    import urllib.request

    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        lines = response.read().decode().splitlines()
    values = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(_IMAGES)}
    return values[f"{_IMAGES}_count"], values[f"{_IMAGES}_sum"]


def _row(name: str, clients: int, loads: Sequence[Load]) -> Row:
    latencies = 1000 * np.concatenate([load.latencies for load in loads])
    p50, p99 = np.percentile(latencies, (50, 99))
    throughput = len(latencies) / sum(load.seconds for load in loads)
    per_batch = sum(load.images for load in loads) / sum(load.batches for load in loads)
    return Row(name, clients, throughput, float(p50), float(p99), per_batch)


def _write(folder: Path, model: str, manifest: Manifest, rows: Sequence[Row]) -> None:
    table = "\n".join(["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER))])
    table += "".join(f"\n| {' | '.join(row.cells())} |" for row in rows)
    print(table)
    machine = {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform()}
    found = {"bundle": model, "model": manifest.model, **machine, "rows": [asdict(row) for row in rows]}
    with written_whole(folder / "serving.md") as path:
        path.write_text(table + "\n", encoding="utf-8")
    with written_whole(folder / "serving.json") as path:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _plot(folder / "serving.png", manifest.model, rows)


def _plot(path: Path, model: str, rows: Sequence[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for number, name in enumerate(SETTINGS):
        own = [row for row in rows if row.batching == name]
        clients = [row.clients for row in own]
        throughput.plot(clients, [row.images_per_second for row in own], "o-", color=f"C{number}", label=name)
        latency.plot(clients, [row.p50 for row in own], "o-", color=f"C{number}", label=f"{name}: p50")
        latency.plot(clients, [row.p99 for row in own], "o--", color=f"C{number}", label=f"{name}: p99")
    for axes, title in ((throughput, "images per second"), (latency, "latency, ms")):
        axes.set(xscale="log", xlabel="clients", ylabel=title, title=f"{model}: {title}")
        axes.set_xticks(sorted({row.clients for row in rows}), sorted({row.clients for row in rows}))
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend(title="batching", fontsize="small")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    run_script(main)
