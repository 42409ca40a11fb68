"""Some steps of a run are recorded, also where the run ends among them."""

import pytest
from mindspore import Tensor, profiler

from mindcv_reparam.config.checks import profiled_steps
from mindcv_reparam.errors import UserError
from mindcv_reparam.training.profile import Profile


@pytest.fixture
def events(monkeypatch):
    found = []

    class Recording:
        def __init__(self, **options):
            assert options["start_profile"] is False

        def start(self):
            found.append("start")

        def stop(self):
            found.append("stop")

    monkeypatch.setattr(profiler, "profile", Recording)
    return found


@pytest.mark.parametrize(
    ("steps", "ran", "expected"),
    [
        ((2, 3), range(1, 6), ["step 1", "start", "step 2", "step 3", "stop", "step 4", "step 5"]),
        ((1, 1), range(1, 3), ["start", "step 1", "stop", "step 2"]),
        ((2, 9), range(1, 4), ["step 1", "start", "step 2", "step 3", "stop"]),
        ((2, 3), range(3, 5), ["step 3", "step 4"]),  # a run that was resumed later than the first
    ],
)
def test_steps_are_recorded_from_the_first_to_the_last(steps, ran, expected, events, tmp_path):
    with Profile(steps, tmp_path) as profile:
        for step in ran:
            profile.before(step)
            events.append(f"step {step}")
            profile.after(step)
    assert events == expected


def test_what_is_written_can_be_read(tmp_path):
    """By MindSpore's own profiler, of an operator."""
    with Profile((1, 2), tmp_path) as profile:
        profile.before(1)
        assert (Tensor([1.0]) + 1.0).asnumpy() == 2.0
        profile.after(2)
    assert [path.name for path in tmp_path.glob("*/ASCEND_PROFILER_OUTPUT/*.json")] == ["trace_view.json"]


def test_the_setting_names_two_steps():
    assert profiled_steps("") is None
    assert profiled_steps("20:30") == (20, 30)
    for text in ("20", "30:20", "0:3", "a:b", "1:2:3", "-1:4"):
        with pytest.raises(UserError, match="profile must be FIRST:LAST"):
            profiled_steps(text)
