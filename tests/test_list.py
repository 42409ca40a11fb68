"""The command list: a table and JSON of the zoo, in no time and without MindSpore."""

import json
import os
import subprocess
import sys

import pytest

from mindcv_reparam import list_models
from mindcv_reparam.__main__ import main
from mindcv_reparam.commands.list import recipes
from mindcv_reparam.errors import UserError


def test_the_table_has_a_line_per_model(capsys):
    assert main(["list", "fast*"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "family", "train"]
    assert [line.split()[0] for line in lines] == list_models("fast*")
    sa12 = next(line.split() for line in lines if line.startswith("fastvit_sa12"))
    assert sa12[:8] == ["fastvit_sa12", "fastvit", "11.581", "11.545", "11.536", "1.94", "256", "0.95"]
    assert " ".join(sa12[8:]) == ("80.90 @256 Apple, FastViT paper; 81.90 @256 Apple, FastViT paper, distilled")


def test_columns_are_aligned(capsys):
    main(["list", "*s12"])
    lines = capsys.readouterr().out.splitlines()
    header = lines[0]
    for title in ("train M", "GMACs", "crop"):
        end = header.index(title) + len(title)
        assert all(line[end - 1].isdigit() and line[end : end + 1] in ("", " ") for line in lines[1:])


def test_without_a_pattern_all_models_are_listed_and_json_tells_everything(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list_models()
    row = next(row for row in rows if row["name"] == "visformer_tiny")
    assert row["params"] == {"train": 10_321_368, "branches": 10_321_368, "full": 10_328_456}
    assert row["macs"] == 1_267_980_288
    assert row["published"][0]["source"] == "MindCV, D910x8-G"


def test_a_word_is_a_part_of_the_name(capsys):
    names = list_models("fastvit_t")
    assert {"fastvit_t8", "rtdetr_fastvit_t8"} < set(names) < set(list_models())
    assert names == list_models("*fastvit_t*")
    assert list_models("fastvit_t8*") == ["fastvit_t8"]
    main(["list", "fastvit_t"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names


def test_recipes_are_listed_for_the_models(capsys):
    main(["list", "poolformer", "--recipes"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("configs/finetune.yaml ")
    assert lines
    assert all(line.startswith("configs/poolformer/") for line in lines)
    main(["list", "fastvit_t8*", "--recipes", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in rows} == {"any", "fastvit_t8"}


def test_without_a_checkout_there_are_no_recipes(tmp_path):
    with pytest.raises(UserError, match=r"there are no recipes for them in .*: a checkout of the project has them"):
        recipes(list_models(), tmp_path)


def test_no_match_names_the_nearest():
    with pytest.raises(UserError, match=r"no model matches 'fastvit_t9\*'; the nearest is 'fastvit_t8'"):
        main(["list", "fastvit_t9*"])


def test_listing_does_not_import_mindspore(tmp_path):
    """A MindSpore that cannot be imported is in front of the right one."""
    (tmp_path / "mindspore.py").write_text("raise SystemExit('mindspore was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "mindcv_reparam", "list", "gfnet*"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1 + len(list_models("gfnet*"))
