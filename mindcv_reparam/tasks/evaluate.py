"""One validation, on any number of ranks."""

import logging
import time
import weakref

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindcv_reparam import watch
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.normalization import Normalization
from mindcv_reparam.tasks.task import EvalLoader, Evaluation, Evaluator

_log = logging.getLogger(__name__)
SECONDS_PER_CELL = {"training": 0.024, "validation": 0.006}
"""Of MindSpore's compiler for a CPU, on an idle machine."""

_compiled: "weakref.WeakSet[nn.Cell]" = weakref.WeakSet()  # for evaluation


def evaluate(
    network: nn.Cell,
    loader: EvalLoader,
    evaluator: Evaluator,
    ranks: Ranks,
    latencies: list[float] | None = None,
    normalize: Normalization | None = None,
) -> Evaluation:
    """Evaluate in evaluation mode; the network's training flag is restored. Collective.

    Args:
        latencies: gets the seconds that the network alone took for each batch of this rank, without the first one,
            which may be spent on compilation; where there is no other, it is run again.
        normalize: of images that come as bytes.

    Raises:
        UserError: there was no image.
    """
    compiles = network not in _compiled
    if compiles and ranks.is_main:
        announce_compilation("network for validation", network)
    _compiled.add(network)
    was_training = network.training
    network.set_train(False)
    clock = _Clock()
    watch.at("the reading of the first images of the validation", compiles=compiles)
    for number, (images, *targets) in enumerate(loader.epoch(0), 1):
        watch.at(f"batch {number} of the validation", compiles=compiles and number == 1)
        outputs, seconds = _run(network, images, normalize)
        if latencies is not None and number > 1:
            latencies.append(seconds)
        clock.count(evaluator.add(outputs, tuple(targets)))
    if latencies == []:
        latencies.append(_run(network, images, normalize)[1])
    network.set_train(was_training)
    watch.at("the sums of the validation")
    result = evaluator.result(ranks, clock.rate)
    if result.samples == 0:
        raise UserError("nothing to evaluate: the validation split has no readable image; check data_dir and val_split")
    return result


def _run(network: nn.Cell, images: np.ndarray, normalize: Normalization | None) -> tuple[tuple[np.ndarray, ...], float]:
    """Outputs, and the seconds until they were here."""
    start = time.perf_counter()
    inputs = Tensor(images)
    outputs = network(inputs if normalize is None else normalize(inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output.asnumpy() for output in outputs), time.perf_counter() - start


def announce_compilation(what: str, network: nn.Cell, training: bool = False) -> None:
    """Say what keeps the terminal still, and for how long; in PyNative mode nothing does.

    Args:
        what: is compiled, in words.
        network: whose Cells the time is estimated by; :data:`SECONDS_PER_CELL` is from docs/speed.md, "Start-up".
        training: with gradients and the update.
    """
    if ms.get_context("mode") == ms.GRAPH_MODE:
        cells = sum(1 for _ in network.cells_and_names())
        seconds = max(1.0, cells * SECONDS_PER_CELL["training" if training else "validation"])
        _log.info("compiling the %s, once: about %.0f s on an idle machine, more beside other work", what, seconds)


class _Clock:
    """Images per second after the first batch, which is spent on compilation; with it if there is no other."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.images = 0.0
        self.rate = 0.0
        self.warm = False

    def count(self, images: float) -> None:
        self.images += images
        self.rate = self.images / (time.perf_counter() - self.start)
        if not self.warm:
            self.warm, self.images, self.start = True, 0.0, time.perf_counter()
