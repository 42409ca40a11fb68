"""The other versions of MindSpore beside the one installed here: ``python tests/compat.py [--quick] [VERSION …]``.

Every version gets an environment under ``.compat/``: this Python, all packages of this environment, and its own
MindSpore in front of them (2.5 GB each). Each runs tests, a training of one epoch on two ranks and, with this
environment, the exchange of checkpoints and bundles in both directions. A table of what passed is printed at the end
and left in ``.compat/table.md``; docs/versions.md has the last one.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

from processes import ENVIRONMENT

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
VERSIONS = ("2.7.0", "2.7.2", "2.8.0", "2.9.0")
QUICK = {
    "private names": ["tests/test_private.py"],
    "parity": ["tests/test_goldens.py", "-m", "not slow", "-k", "timm-visformer_tiny or mmpretrain-riformer_s12"],
    "a NaN in summed gradients": ["tests/test_training_trainer.py", "-k", "loss_hides"],
    "optimizers": ["tests/test_training_optimizer.py", "-k", "five_steps"],
    "two ranks": ["tests/test_distributed.py", "-k", "sums and not msrun and not scheduler"],
}
# Where MindSpore computes; files, settings and servers are the same with any of them.
_FAST = (
    *("layers", "stochastic", "cpu", "fastvit", "riformer", "rtdetr", "reparam_graph", "checkpoint"),
    *("training_step", "training_trainer", "training_waits", "training_losses", "training_optimizer"),
    *("training_precision", "training_bytes", "detection_losses", "export_graph"),
)
_TWO_AT_A_TIME = ("-n", "2", "--dist", "loadfile")  # not the ranks: older versions give a late one up after 30 s
FULL = {
    "private names": ["tests/test_private.py"],
    "fast tests": [*(f"tests/test_{name}.py" for name in _FAST), "-m", "not slow and not exhaustive", *_TWO_AT_A_TIME],
    "parity": ["tests/test_goldens.py", "-m", "not exhaustive", *_TWO_AT_A_TIME],
    "two ranks": ["tests/test_distributed.py", "tests/test_training_distributed.py", "-m", "not exhaustive"],
}
EPOCH = "train.py --config configs/visformer/visformer_tiny_digits_cpu.yaml --epoch_size 1"
LEAST = 80.0  # top-1 after it
PROGRAMS = ("mpirun", "ompirun_wrapper", "prte", "prted", "prterun", "prte_info")  # beside the Python, as tests look


class Environment:
    """A Python with a version of MindSpore."""

    def __init__(self, mindspore: str) -> None:
        self.mindspore = mindspore
        self.own = mindspore == version("mindspore")
        self.bin = Path(sys.executable).parent if self.own else FOLDER / mindspore / "bin"

    def make(self) -> None:
        """Unless it is there."""
        done = FOLDER / self.mindspore / ".installed"
        if self.own or done.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER / self.mindspore], check=True)
        site = self.bin.parent / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for program in PROGRAMS:
            (self.bin / program).symlink_to(Path(sys.executable).with_name(program))
        self.run("-m", "pip", "install", "--quiet", f"mindspore=={self.mindspore}")
        done.touch()

    def run(self, *words: object, launcher: tuple[str, ...] = ()) -> str:
        """What ``python words`` prints; a RuntimeError with the end of it if it fails."""
        environ = os.environ | ENVIRONMENT | {"PATH": f"{self.bin}{os.pathsep}{ENVIRONMENT['PATH']}"}
        command = [*launcher, str(self.bin / "python"), *map(str, words)]
        child = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{(child.stdout + child.stderr)[-4000:]}")
        return child.stdout

    def keeps(self) -> str:
        """That ``pip install .`` would leave MindSpore as it is."""
        words = ("-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", ".")
        new = [one["metadata"]["name"].lower() for one in json.loads(self.run(*words))["install"]]
        if "mindspore" in new:
            raise RuntimeError(f"pip install . replaces MindSpore {self.mindspore}")
        return "kept"

    def tests(self, words: list[str]) -> str:
        return (
            self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *words).strip().splitlines()[-1].split(" in ")[0]
        )

    def epoch(self) -> str:
        """A training of an epoch on two ranks: the accuracy, if it has learned."""
        folder = FOLDER / "runs" / self.mindspore
        launcher = (str(self.bin / "mpirun"), "-n", "2")
        self.run(*EPOCH.split(), "--ckpt_save_dir", folder, launcher=launcher)
        accuracy = folder / "accuracy.json"
        network = ("-c", folder / "visformer_tiny.yaml", "--ckpt_path", folder / "visformer_tiny_final.ckpt")
        self.run("validate.py", *network, "--output", accuracy)
        top1 = json.loads(accuracy.read_text())["top1"]
        if top1 < LEAST:
            raise RuntimeError(f"an epoch with MindSpore {self.mindspore} gave top-1 {top1:.1f}, not {LEAST}")
        return f"top-1 {top1:.1f}"

    def write(self) -> Path:
        """Files for the others."""
        folder = FOLDER / "exchange" / self.mindspore
        subprocess.run(["rm", "-rf", folder], check=True)
        self.run("tests/exchange.py", "write", folder)
        return folder


def attempts(one: Environment, newest: Environment, quick: bool) -> dict:
    """What is tried with a version, by column."""
    found = {"pip install .": one.keeps}
    found |= {name: lambda words=words: one.tests(words) for name, words in (QUICK if quick else FULL).items()}
    if not quick:
        found["epoch on two ranks"] = one.epoch
    if not one.own:
        for column, (source, reader) in {
            f"its files in {newest.mindspore}": (one, newest),
            f"files of {newest.mindspore}": (newest, one),
        }.items():
            found[column] = lambda source=source, reader=reader: _exchanged(source, reader)
    return found


def _exchanged(source: Environment, reader: Environment) -> str:
    lines = reader.run("tests/exchange.py", "read", source.write()).splitlines()
    largest = max(float(line.split()[-1]) for line in lines if ".ckpt: " in line)
    return f"{largest:.0e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="default: " + " ".join(VERSIONS))
    parser.add_argument("--quick", action="store_true", help="a few tests of what differs, for every commit")
    args = parser.parse_args()
    newest = Environment(version("mindspore"))
    rows, failed = {}, False
    for one in (*map(Environment, args.versions), *(() if args.quick else (newest,))):
        one.make()
        row = rows[one.mindspore] = {}
        for column, attempt in attempts(one, newest, args.quick).items():
            start = time.monotonic()
            try:
                row[column] = attempt()
            except RuntimeError as error:
                row[column], failed = "FAILED", True
                print(error, flush=True)
            print(f"{one.mindspore} {column}: {row[column]}, {time.monotonic() - start:.0f} s", flush=True)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = [["MindSpore", *columns], ["---"] * (len(columns) + 1)]
    table += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    (FOLDER / "table.md").write_text(text + "\n")
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
