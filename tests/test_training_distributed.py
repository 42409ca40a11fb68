"""Two ranks with half the batch each train as one rank with the whole batch.

The file is also the program that every rank runs: `python test_training_distributed.py OUTPUT`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from alone import Alone
from processes import ENVIRONMENT, mpirun_command

STEPS, BATCH, CLASSES = 6, 8, 5


def main(output: str) -> None:
    """Train as one of the ranks, without and with accumulation; rank 0 writes losses, norms and weights."""
    from mindcv_reparam import distributed, runtime

    distributed.set_environment()
    runtime.prepare("CPU", seed=1)
    ranks = distributed.start(None, "CPU")
    results = results_of(ranks)
    if ranks.is_main:
        np.savez(output, **results)
    ranks.close()


def results_of(ranks) -> dict[str, np.ndarray]:
    return {
        f"{name} ({accumulation_steps} batches per update)": value
        for accumulation_steps in (1, 2)
        for name, value in train(ranks, accumulation_steps).items()
    }


def train(ranks, accumulation_steps: int) -> dict[str, np.ndarray]:
    """Six steps of a convolution, group norm, dense network on this rank's part of every batch."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from mindcv_reparam.tasks.classification.losses import create_loss
    from mindcv_reparam.tasks.classification.objective import ClassificationObjective
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.step import TrainStep

    class Network(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=1, pad_mode="pad", padding=1, has_bias=True, weight_init="he_normal")
            self.norm = nn.GroupNorm(2, 8, eps=1e-5)
            self.head = nn.Dense(8, CLASSES, weight_init="he_normal")

        def construct(self, x):
            x = self.norm(self.conv(x))
            return self.head((x * x).mean((2, 3)))

    ms.set_seed(1)
    network = Network()
    ranks.check_identical((p.name, p.asnumpy()) for p in network.get_parameters())
    step = TrainStep(
        ClassificationObjective(network, create_loss("CE")),
        create_optimizer(network, "adamw", weight_decay=0.05, weight_decay_filter="1d"),
        size=ranks.size,
        clip_norm=0.2,
        accumulation_steps=accumulation_steps,
    )
    rng = np.random.default_rng(0)
    losses, norms = [], []
    for index in range(STEPS):
        images = rng.normal(size=(BATCH, 3, 12, 12)).astype(np.float32)
        labels = 0.9 * rng.dirichlet(np.ones(CLASSES), size=BATCH).astype(np.float32) + 0.1 / CLASSES
        mine = slice(ranks.rank * BATCH // ranks.size, (ranks.rank + 1) * BATCH // ranks.size)
        update = (index + 1) % accumulation_steps == 0
        loss, norm, *_ = step(Tensor(images[mine]), Tensor(labels[mine]), Tensor(0.01, ms.float32), update)
        losses.append(ranks.sum([float(loss.asnumpy())])[0] / ranks.size)
        norms.append(float(norm.asnumpy()))
    ranks.check_identical((p.name, p.asnumpy()) for p in network.get_parameters())
    weights = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
    return {"losses": np.array(losses), "norms": np.array(norms), **weights}


def launch(output: Path) -> dict[str, np.ndarray]:
    result = subprocess.run(
        mpirun_command(2, __file__, output),
        env=os.environ | ENVIRONMENT,
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    one = results_of(Alone())
    two = launch(tmp_path / "two.npz")
    assert two.keys() == one.keys()
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        if name.startswith("norms"):
            assert expected.max() > 0.2  # clipping was at work


if __name__ == "__main__":
    main(sys.argv[1])
