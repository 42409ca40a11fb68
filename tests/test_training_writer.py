"""Files are written beside the training, in order, from a copy, and an error is not lost."""

import threading
import time

import numpy as np
import pytest

from mindcv_reparam.training.writer import Writer, copies_of


def test_jobs_run_in_order_and_nobody_waits_for_them():
    begin, done = threading.Event(), []
    with Writer() as writer:
        writer.submit(lambda: begin.wait(20) or done.append("never begun"))
        for number in range(3):
            writer.submit(lambda number=number: done.append(number))
        assert done == []
        begin.set()
    assert done == [0, 1, 2]


def test_an_error_ends_the_jobs_and_is_raised_once():
    done = []

    def fail():
        raise OSError("no room")

    writer = Writer()
    writer.submit(fail)
    writer.submit(lambda: done.append("later"))
    writer.wait()
    assert done == []
    with pytest.raises(OSError, match="no room"):
        writer.submit(lambda: done.append("asked"))
    writer.finish()
    assert done == []


def test_leaving_waits_and_does_not_hide_what_went_wrong_first():
    done = []

    def train(error: Exception | None) -> None:
        with Writer() as writer:
            writer.submit(lambda: time.sleep(0.2) or done.append("written"))
            writer.submit(lambda: 1 / 0)
            if error:
                raise error

    with pytest.raises(KeyError, match="training"):
        train(KeyError("training"))
    assert done == ["written"]
    with pytest.raises(ZeroDivisionError):
        train(None)


def test_copies_take_the_memory_that_is_spare():
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(2, np.int32)}
    first = copies_of(values)
    values["a"][:] = 7.0
    np.testing.assert_array_equal(first["a"], np.arange(6.0).reshape(2, 3))
    second = copies_of(values, first)
    assert second["a"] is first["a"]
    np.testing.assert_array_equal(second["a"], np.full((2, 3), 7.0))
    assert second["b"] == 2
