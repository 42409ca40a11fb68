"""Which files a run leaves."""

import functools

import pytest

from mindcv_reparam.training import keeper as rooms

CheckpointKeeper = functools.partial(rooms.CheckpointKeeper, metric="top1")

SCORES = (10.0, 30.0, 20.0, 40.0, 15.0)


def save(path, record, weights):
    path.write_text(str(record["epoch"]) + ("" if weights == "online" else f" {weights}"))


def run(directory, epochs, **options):
    keeper = CheckpointKeeper(directory, "net", save, **options)
    for epoch in epochs:
        keeper.epoch_end({"epoch": epoch, "top1": SCORES[epoch - 1]})
    return keeper


def files(directory) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"keep": 2}, (4, 5)),
        ({"keep": 2, "policy": "top_k"}, (2, 4)),
        ({"keep": 2, "policy": None}, (1, 2, 3, 4, 5)),
        ({"keep": 5, "interval": 2}, (2, 4)),
    ],
)
def test_policies(tmp_path, options, epochs):
    keeper = run(tmp_path / "ckpt", range(1, 6), **options)
    keeper.train_end({"epoch": 5})
    expected = {f"net-{epoch:04d}.ckpt": str(epoch) for epoch in epochs}
    assert files(tmp_path / "ckpt") == expected | {"net_best.ckpt": "4", "net_final.ckpt": "5"}


def test_a_validation_without_anything_to_find_is_never_among_the_best(tmp_path):
    keeper = CheckpointKeeper(tmp_path, "net", save, keep=2, policy="top_k")
    for epoch, top1 in enumerate((10.0, 5.0, float("nan"), 7.0), start=1):
        keeper.epoch_end({"epoch": epoch, "top1": top1})
    assert files(tmp_path) == {"net-0001.ckpt": "1", "net-0004.ckpt": "4", "net_best.ckpt": "1"}


@pytest.mark.parametrize(("weights", "best", "suffixes"), [("ema", 2, (" ema", "")), ("online", 4, ("", " ema"))])
def test_best_and_final_keep_both_sets_of_weights(tmp_path, weights, best, suffixes):
    other = {"ema": "online", "online": "ema"}[weights]
    keeper = CheckpointKeeper(tmp_path, "net", save, keep=1, weights=(weights, other))
    for epoch, (top1, ema_top1) in enumerate(zip(SCORES, (5.0, 50.0, 20.0, 30.0, 10.0)), start=1):
        keeper.epoch_end({"epoch": epoch, "top1": top1, "ema_top1": ema_top1})
    keeper.train_end({"epoch": 5})
    own, others = suffixes
    assert files(tmp_path) == {
        "net-0005.ckpt": f"5{own}",
        "net_best.ckpt": f"{best}{own}",
        f"net_best_{other}.ckpt": f"{best}{others}",
        "net_final.ckpt": f"5{own}",
        f"net_final_{other}.ckpt": f"5{others}",
    }


def test_without_validation_there_is_no_best(tmp_path):
    keeper = CheckpointKeeper(tmp_path, "net", save, keep=1)
    keeper.epoch_end({"epoch": 1, "top1": None})
    keeper.epoch_end({"epoch": 2})
    assert files(tmp_path) == {"net-0002.ckpt": "2"}


@pytest.mark.parametrize("policy", ["latest_k", "top_k"])
def test_a_recalled_run_ends_as_an_uninterrupted_one(tmp_path, policy):
    run(tmp_path / "whole", range(1, 6), keep=2, policy=policy)
    run(tmp_path / "parts", range(1, 4), keep=2, policy=policy)
    keeper = CheckpointKeeper(tmp_path / "parts", "net", save, keep=2, policy=policy)
    keeper.recall([{"epoch": epoch, "top1": SCORES[epoch - 1]} for epoch in (1, 2, 3)])
    for epoch in (4, 5):
        keeper.epoch_end({"epoch": epoch, "top1": SCORES[epoch - 1]})
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_files_of_another_run_are_left_alone(tmp_path):
    (tmp_path / "net-0000.ckpt").write_text("other")
    run(tmp_path, range(1, 6), keep=1)
    assert files(tmp_path)["net-0000.ckpt"] == "other"


def test_a_failed_save_deletes_nothing(tmp_path):
    keeper = run(tmp_path, (1,), keep=1)

    def fail(path, record, weights):
        raise OSError("no space")

    keeper.save = fail
    with pytest.raises(OSError, match="no space"):
        keeper.epoch_end({"epoch": 2})
    assert "net-0001.ckpt" in files(tmp_path)
