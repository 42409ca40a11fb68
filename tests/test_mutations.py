"""The table of faults fits the code: plant.py, which takes long, finds every place where it plants one."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutations"))

from faults import ROOMS  # noqa: E402

FAULTS = [(room.path, name, was, becomes) for room in ROOMS for name, (was, becomes) in room.faults.items()]


@pytest.mark.parametrize(("path", "name", "was", "becomes"), FAULTS, ids=[": ".join(fault[:2]) for fault in FAULTS])
def test_a_fault_can_be_planted(path, name, was, becomes):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count(was) == 1
    if path.endswith(".py"):
        compile(source.replace(was, becomes), path, "exec")


@pytest.mark.parametrize("room", ROOMS, ids=[room.path for room in ROOMS])
def test_its_tests_exist(room):
    assert (ROOT / room.tests.split()[0]).is_file()
