"""What a training shows on a terminal: the lines whole, the bar below them, and nothing still without a word."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from processes import ENVIRONMENT

COLUMNS = 100
PROGRAM = """
import sys, time
from mindcv_reparam import runtime
runtime.prepare("CPU", seed=0)
runtime.show_log()
import numpy as np
from alone import Alone
from test_training_trainer import STEPS, Loader, build
from mindcv_reparam.training import trainer
from mindcv_reparam.tasks.classification.evaluation import AccuracyEvaluator
from mindcv_reparam.tasks.evaluate import evaluate

class Slow(Loader):
    def epoch(self, epoch, start_step=0):
        for batch in super().epoch(epoch, start_step):
            time.sleep(0.2)  # the bar draws itself ten times a second
            yield batch

class Validation:
    def epoch(self, epoch):
        yield np.ones((2, 3), np.float32), np.array([0, 1]), np.ones(2, np.float32)

def compile_slowly(*arguments, first=trainer.announce_compilation, **options):
    first(*arguments, **options)
    time.sleep(5)

trainer.announce_compilation = compile_slowly
ranks = Alone()
built = build(epochs=2, ranks=ranks, log_interval=1)
built.loader = Slow()
built.validate = lambda: evaluate(built.step.network, Validation(), AccuracyEvaluator(), ranks).metrics()
built.run()
"""
LINE = re.compile(
    r"compiling the (training step|network for validation), once: about \d+ s on an idle machine, "
    r"more beside other work"
    r"|first step, compilation included: [\d.]+ s"
    r"|epoch \d/2 step \d/5 loss [\d.]+ lr [\d.e+-]+( [\d.]+ img/s data wait \d+ % eta [\d:]+)?"
    r"|epoch \d/2 done: train loss [\d.]+, val loss [\d.]+, top-1 [\d.]+ %, top-5 [\d.]+ %"
)
BAR = re.compile(r"epoch [12]: +\d+%\|.*\| \d/5 \[\d\d:\d\d<[\d:?]+, +[\d.?]+(it/s|s/it)\]")


def terminal_output(program: str) -> str:
    """All that the program writes to a terminal, its standard error."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = os.environ | ENVIRONMENT | {"TERM": "xterm"}
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=terminal, env=environment)
    os.close(terminal)
    written = b""
    while True:
        try:
            written += os.read(controller, 65536)
        except OSError:  # the program has closed its end
            break
    assert process.wait() == 0, written.decode()
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that stay: a carriage return goes to the start of the line, and what follows overwrites it."""
    lines, column = [""], 0
    assert "\x1b[A" not in written
    for piece in re.findall(r"\r|\n|[^\r\n]+", written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append("")
        else:
            lines[-1] = lines[-1][:column].ljust(column) + piece + lines[-1][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def written():
    return terminal_output(PROGRAM)


@pytest.mark.slow
def test_every_line_is_a_whole_line_or_a_whole_bar(written):
    lines = screen(written)
    torn = [line for line in lines if not LINE.fullmatch(line) and not BAR.fullmatch(line) and "ONEDNN" not in line]
    assert torn == []
    assert sum(" eta " in line for line in lines) == 9
    assert [line[:7] for line in lines if BAR.fullmatch(line)] == ["epoch 1", "epoch 2"]


@pytest.mark.slow
def test_compilation_is_announced_once_and_before_it_happens(written):
    lines = [line for line in screen(written) if LINE.fullmatch(line)]
    assert [line.startswith("compiling the training step") for line in lines[:3]] == [True, False, False]
    assert lines[1].startswith("first step")
    validations = [index for index, line in enumerate(lines) if "network for validation" in line]
    assert validations == [next(index for index, line in enumerate(lines) if "done" in line) - 1]


@pytest.mark.slow
def test_the_bars_rate_does_not_count_the_compilation(written):
    """Which takes five seconds here; a step takes 0.2."""
    bars = re.findall(r"epoch 1: +\d+%\|[^|]*\| (\d)/5 \[00:(\d\d)<", written)
    assert bars[0][0] == "1"
    assert {step for step, _ in bars} >= {"2", "3", "4", "5"}
    assert max(int(seconds) for _, seconds in bars) < 4
