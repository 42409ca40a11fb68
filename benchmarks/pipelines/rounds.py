"""How a pipeline's process talks to the benchmark: one line in, one epoch run, one line out."""

import json
import sys
import time
from collections.abc import Callable, Iterable


def serve(epoch: Callable[[], Iterable[int]]) -> None:
    """Run one epoch per line on standard input.

    ``epoch()`` yields the number of images of every batch as it arrives. The answer is a JSON line: images in all,
    seconds to the first batch, images after it, and seconds for those.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        start = time.perf_counter()
        sizes, arrived = [], []
        for size in epoch():
            sizes.append(size)
            arrived.append(time.perf_counter())
        first, end = arrived[0], time.perf_counter()
        result = {"images": sum(sizes), "first": first - start, "after": sum(sizes[1:]), "seconds": end - first}
        print(json.dumps(result), file=answers, flush=True)
