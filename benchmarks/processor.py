"""Processor time of a process and of all it started."""

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds(root: int) -> float:
    """User and system time so far of process ``root``, of its living descendants and of those they have waited for."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = sum(map(int, fields[11:15])) / _TICK
    family = {root}
    while children := {process for process, parent in parents.items() if parent in family} - family:
        family |= children
    return sum(spent.get(process, 0.0) for process in family)
