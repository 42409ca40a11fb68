"""The side of a contender: one call, then one more for every line on standard input, a line of JSON for each."""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(call: Callable[[], object]) -> None:
    """Answer each call with its seconds and the process's peak memory so far, in MiB."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    while True:
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), file=answers, flush=True)
        if not sys.stdin.readline():
            return
