"""What the jobs of test_distributed.py run: ``distributed_worker.py TASK TOKEN``, the token marks the processes."""

import json
import os
import signal
import sys
import time

import numpy as np

from mindcv_reparam import distributed, runtime
from mindcv_reparam.errors import run_script


def weights(rank: int) -> list[tuple[str, np.ndarray]]:
    same, planted = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), np.ones(5, np.float32)
    planted[3] = np.nextafter(planted[3], np.float32(2)) if rank else planted[3]
    return [("stem.weight", same), ("head.bias", planted), ("head.weight", same + rank)]


def collectives(job: distributed.Distributed) -> None:
    job.barrier()
    job.check_identical(weights(rank=0))
    table = job.sum(np.array([[2.0**53 - 1 - 3, 0.5], [7, 1e-300]]) if job.is_main else [[3, 0.25], [-7, 0]])
    print(json.dumps([job.rank, job.size, job.local_rank, job.launcher, table.tolist()]), flush=True)
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


def waiting(job: distributed.Distributed) -> None:
    print("ready", flush=True)
    time.sleep(600)


TASKS = {task.__name__: task for task in (collectives, planted_difference, killed_rank, failing_rank, waiting)}


def main() -> None:
    runtime.prepare("CPU", seed=0)
    TASKS[sys.argv[1]](distributed.start(None, "CPU"))


run_script(main)
