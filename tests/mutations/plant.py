"""Show that the tests notice faults: plant one of the table (faults.py) at a time in a copy and run its tests.

    python tests/mutations/plant.py ["mindcv_reparam/models/*"]

Prints a table with the test that turned red first, and fails if a fault goes unnoticed.
"""

import argparse
import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import ROOMS, Room

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of the files to plant faults in")
    rooms = [room for room in ROOMS if fnmatch.fnmatch(room.path, parser.parse_args().pattern)]

    planted = unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("mindcv_reparam", "tests", "benchmarks", "configs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "train.py", "validate.py", "export.py"):
            shutil.copy(ROOT / name, copy)

        print("| fault | in | first red test |\n|---|---|---|")
        for room in rooms:
            if red := first_red_test(copy, room.tests):
                raise SystemExit(f"{red} is red without a fault")
            for name, (was, becomes) in room.faults.items():
                red = with_fault(copy, room, was, becomes)
                planted, unnoticed = planted + 1, unnoticed + (red is None)
                print(f"| {name} | `{room.path}` | {f'`{red}`' if red else '**none**'} |", flush=True)
    print(f"\n{planted - unnoticed} of {planted} faults turn a test red")
    return int(unnoticed > 0)


def with_fault(copy: Path, room: Room, was: str, becomes: str) -> str | None:
    """The first red test while the fault is in place."""
    path = copy / room.path
    source = path.read_text()
    if source.count(was) != 1:
        raise SystemExit(f"{was!r} occurs {source.count(was)} times in {room.path}; mend the table of faults")
    path.write_text(source.replace(was, becomes))
    try:
        return first_red_test(copy, room.tests)
    finally:
        path.write_text(source)


def first_red_test(copy: Path, tests: str) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if red := re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", run.stdout, re.MULTILINE):
        return red[1]
    if run.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {run.returncode}:\n{run.stdout}{run.stderr}")
    return None


if __name__ == "__main__":
    sys.exit(main())
