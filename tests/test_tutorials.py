"""The commands of the tutorial of fine-tuning, line by line, on a small set: what one leaves, the next one finds."""

import json
from pathlib import Path

import numpy as np
import pytest
from here import restored, run_here
from PIL import Image
from test_documents import command_lines, spoken

import export
import train
import validate
from mindcv_reparam import create_model, registry, zoo
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorials" / "fine-tune.md"
CLASSES = {"daisy": (240, 240, 60), "rose": (200, 30, 60), "tulip": (120, 60, 200)}
SCRIPTS = {"train": train, "validate": validate, "export": export}
# Short, on a small network, whose operators run one by one: compiling it for each command would take most of the time.
SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), mlp_ratio=2)
SHORT = {
    "train": "--epoch_size 1 --decay_epochs 1 --warmup_epochs 0 --image_resize 64 --mode 1",
    "probe": "--image_resize 64 --mode 1",
}


@pytest.fixture(scope="module")
def small():
    """The tutorial's model has few blocks here."""
    zoo.import_family("fastvit")
    network, hyper_parameters = registry.VARIANTS["fastvit_t8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.VARIANTS, "fastvit_t8", (network, {**hyper_parameters, **SMALL}))
        yield


@pytest.fixture(scope="module")
def workplace(small, tmp_path_factory):
    """A folder with flowers of three colours, other photographs, weights as timm names them, and the recipes."""
    folder, rng = tmp_path_factory.mktemp("tutorial"), np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / "flowers" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.clip(np.array(colour) + rng.normal(0, 20, (72, 80, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "flowers" / name / f"{index}.jpg")
    (folder / "photos").mkdir()
    Image.fromarray(np.full((60, 90, 3), 128, np.uint8)).save(folder / "photos" / "one.jpg")
    info = CheckpointInfo("fastvit_t8", {"num_classes": 1000, "img_size": [256, 256]})
    save_checkpoint(folder / "own.ckpt", create_model("fastvit_t8"), info)
    weights = folder / "fastvit_t8.apple_in1k.safetensors"
    assert main(["convert", str(folder / "own.ckpt"), "-o", str(weights), "--to", "timm"]) == 0
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.slow
def test_the_tutorial_of_fine_tuning_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    lines = command_lines(TUTORIAL.read_text())
    assert len(lines) == 10
    with restored():
        for line in lines:
            name, words = spoken(line)
            words += SHORT.get(name, "").split()
            if name in SCRIPTS:
                run_here(SCRIPTS[name], *words)
            else:
                assert main([name, *words]) == 0, line
    runs = workplace / "runs"
    for run in ("tuned", "linear", "from-linear", "probe"):
        (best,) = runs.glob(f"{run}/*_best.ckpt") if run != "linear" else runs.glob(f"{run}/*_probe.ckpt")
        assert read_checkpoint(best)[1].classes == list(CLASSES)
    assert json.loads((runs / "tuned/bundle/bundle.json").read_text())["model"] == "fastvit_t8"
    held = (runs / "tuned/split.csv").read_text().splitlines()
    assert len([row for row in held if row.endswith(",val")]) == 6
    assert "one.jpg" in capsys.readouterr().out
