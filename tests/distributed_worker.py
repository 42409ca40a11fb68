"""What the jobs of test_distributed.py run: ``distributed_worker.py TASK TOKEN``, the token marks the processes."""

import importlib
import json
import os
import signal
import sys
import time

import numpy as np

from mindcv_reparam import distributed, runtime, watch
from mindcv_reparam.errors import Interrupted, run_script
from mindcv_reparam.meeting import impatient
from mindcv_reparam.training.interruption import Interruption


def tell(line: str) -> None:
    """In one write, since all ranks of msrun share its output; print writes the end of a line by itself."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def weights(rank: int) -> list[tuple[str, np.ndarray]]:
    same, planted = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), np.ones(5, np.float32)
    planted[3] = np.nextafter(planted[3], np.float32(2)) if rank else planted[3]
    return [("stem.weight", same), ("head.bias", planted), ("head.weight", same + rank)]


def collectives(job: distributed.Distributed) -> None:
    job.barrier()
    job.check_identical(weights(rank=0))
    table = job.sum(np.array([[2.0**53 - 1 - 3, 0.5], [7, 1e-300]]) if job.is_main else [[3, 0.25], [-7, 0]])
    tell(json.dumps([job.rank, job.size, job.local_rank, job.launcher, table.tolist()]))
    job.close()


def planted_difference(job: distributed.Distributed) -> None:
    job.check_identical(weights(job.rank))


def killed_rank(job: distributed.Distributed) -> None:
    if job.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    job.barrier()


def failing_rank(job: distributed.Distributed) -> None:
    if job.rank == 1:
        raise ZeroDivisionError("planted failure")
    job.barrier()


def late_rank(job: distributed.Distributed) -> None:
    """Rank 1 comes LATE seconds after the others, to the host's collectives or, "device", to one of MindSpore's own."""
    where, seconds = os.environ["LATE"].split()
    if job.rank == 1:
        time.sleep(float(seconds))
    if where == "device":
        ms = importlib.import_module("mindspore")

        class Sum(ms.nn.Cell):
            def __init__(self) -> None:
                super().__init__()
                self.reduce = ms.ops.AllReduce()

            def construct(self, x):
                return self.reduce(x)

        with impatient():
            Sum()(ms.Tensor([1.0])).asnumpy()
    tell(str(job.sum([1.0])[0]))
    job.close()


def waiting(job: distributed.Distributed) -> None:
    tell("ready")
    time.sleep(600)


def stepping(job: distributed.Distributed) -> None:
    """Without end; the rank HANGS of the environment soon hangs as if on a disk."""
    with Interruption(job) as interruption:
        for step in range(1_000_000):
            watch.at("the reading of images")
            if int(os.environ.get("HANGS", -1)) == job.rank and step > 60:
                time.sleep(600)
            watch.at(f"step {step}", compiles=step == 0)  # the first collective connects the ranks
            job.barrier()
            if step % 60 == 0 and step:  # some seconds, in which the ranks have heard of one another
                tell("ready" if step == 60 else f"at {step}")
            watch.at("the vote")
            if number := interruption.agreed(step, waited=False):
                raise Interrupted(f"stopped after step {step}", number)
            time.sleep(0.05)


TASKS = {
    task.__name__: task
    for task in (collectives, planted_difference, late_rank, killed_rank, failing_rank, waiting, stepping)
}


def main() -> None:
    runtime.prepare("CPU", seed=0)
    if os.environ.get("BY_SCHEDULER"):  # as before MindSpore 2.9
        private = importlib.import_module("mindcv_reparam.private")
        private.init_with_store = lambda: None
    TASKS[sys.argv[1]](distributed.start(None, "CPU", float(os.environ.get("STALL_TIMEOUT", 0))))


run_script(main)
