"""What a bundle brings for somebody who has nothing else and shall serve it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import numpy as np
import onnx
import processes
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from served import CLASSIFY, Server, picture, triton_schema
from test_documents import command_lines, parse
from test_infer import manifest, write_bundle

from mindcv_reparam import create_model
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.bundle.triton import onnx_config
from mindcv_reparam.bundle.triton import text_format as written
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.export.operator_files import operator_files
from mindcv_reparam.run.runners import bundle_program
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tensors import TensorSpec

ROOT = Path(__file__).parents[1]
TYPES = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
}
KINDS = {
    "any batch": {},
    "listed batches": {"batch_sizes": (1, 4, 8), "input_kind": "rgb", "output_kind": "softmax"},
    "one batch": {"batch_sizes": (2,), "output_kind": "topk"},
}


@pytest.fixture(scope="module")
def schema():
    return triton_schema()


def dims(value):
    return [size.dim_value or -1 for size in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("kind", KINDS)
def test_triton_reads_the_configuration_as_the_onnx_file_is(schema, tmp_path, kind):
    bundle = write_bundle(tmp_path / "colours", **KINDS[kind])
    said = read_manifest(bundle)
    config = text_format.Parse(operator_files("colours", said)["config.pbtxt"], schema.ModelConfig())
    assert config == json_format.ParseDict(onnx_config("colours", said), schema.ModelConfig())
    assert (config.name, config.platform, config.backend) == ("colours", "onnxruntime_onnx", "onnxruntime")
    assert (bundle / config.default_model_filename).is_file()
    graph = onnx.load(bundle / "model.onnx").graph
    for tensors, values in ((config.input, graph.input), (config.output, graph.output)):
        assert [tensor.name for tensor in tensors] == [value.name for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            assert schema.DataType.Name(tensor.data_type) == TYPES[value.type.tensor_type.elem_type]
            batch = [-1] if config.max_batch_size else []  # Triton's own, in front of the dims
            assert batch + list(tensor.dims) == dims(value)
    labels = [output.label_filename for output in config.output]
    assert labels == (["", ""] if kind == "one batch" else ["labels.txt"])


def test_requests_are_gathered_up_to_what_the_file_takes(schema):
    found = {kind: onnx_config("m", manifest(**options)) for kind, options in KINDS.items()}
    assert {kind: config["max_batch_size"] for kind, config in found.items()} == dict(zip(KINDS, (8, 8, 0)))
    assert {kind: config.get("dynamic_batching") for kind, config in found.items()} == {
        "any batch": {},
        "listed batches": {"preferred_batch_size": [4, 8]},
        "one batch": None,
    }
    parsed = text_format.Parse(written(found["listed batches"]), schema.ModelConfig())
    assert list(parsed.dynamic_batching.preferred_batch_size) == [4, 8]
    assert text_format.Parse(written(found["any batch"]), schema.ModelConfig()).HasField("dynamic_batching")


def test_a_detector_s_sizes_are_an_input_of_triton_s_too(schema):
    results = task_named("detection").results
    outputs = [("labels", "int64", (None, 9)), ("boxes", "float32", (None, 9, 4)), ("scores", "float32", (None, 9))]
    values = vars(manifest()) | {
        "task": "detection",
        "sizes": TensorSpec("sizes", "int32", (None, 2)),
        "outputs": tuple(TensorSpec(*one) for one in outputs),
        "output_kind": "topk",
        "meanings": results.meanings("topk"),
    }
    files = operator_files("finder", type(manifest())(**values))
    config = text_format.Parse(files["config.pbtxt"], schema.ModelConfig())
    assert [(one.name, list(one.dims)) for one in config.input] == [("images", [3, 16, 16]), ("sizes", [2])]
    assert [list(one.dims) for one in config.output] == [[9], [9, 4], [9]]
    assert not any(one.label_filename for one in config.output)
    text = files["README.md"]
    assert "/v2/models/finder/detect'" in text
    assert '{"images": images, "sizes": np.array([[320, 240]] * len(images), np.int32)}' in text
    assert "| input | `sizes` | INT32 | (any, 2) | width and height, in this order, of every image" in text
    assert "resized (bilinear, as Pillow does it) to 16 x 16 (height x width) without regard" in text


@pytest.mark.parametrize("name", ["fastvit_t8", "two best", 'caf\u00e9 "a" \\ it\'s'])
def test_names_of_folders_survive_every_language(schema, name):
    files = operator_files(name, manifest())
    assert text_format.Parse(files["config.pbtxt"], schema.ModelConfig()).name == name
    served = [shlex.split(line) for line in command_lines(files["README.md"]) if " serve " in line]
    assert [words[-2:] for words in served] == [["serve", f"{name}=."]]
    (entry,) = [line for line in files["Dockerfile"].splitlines() if line.startswith("ENTRYPOINT")]
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[-3:] == [f"{name}=/bundle", "--host", "0.0.0.0"]


def test_the_readme_s_commands_are_taken_and_its_python_runs(tmp_path):
    bundle = write_bundle(tmp_path / "colours")
    text = operator_files("colours", read_manifest(bundle))["README.md"]
    lines = [line for line in command_lines(text) if "mindcv_reparam " in line and line.startswith("python")]
    assert [line.split()[3] for line in lines] == ["verify", "infer", "serve"]
    assert "pip install -r requirements-server.txt && pip install --no-deps ." in command_lines(text)
    for line in lines:
        parse(line)
    assert '`labels.txt` has 3, a line each, by index from 0: "red", "green", "blue"\n' in text
    assert "| input | `images` | FP32 | (any, 3, 16, 16) | images as below |" in text
    assert "until it just covers 17 x 17 (height x width), cropped to the 16 x 16 in its centre." in text
    assert "(value - mean) / std of values from 0 to 255, mean 120, 110, 100, std 50, 60, 70: float32, (" in text
    (code,) = (block.partition("```")[0] for block in text.split("```python\n")[1:])
    (bundle / "sample").mkdir()
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    np.save(bundle / "sample/input.npy", images)
    check = f"{code}\nnp.testing.assert_allclose(outputs[0], images.mean((2, 3)), rtol=1e-5)"
    subprocess.run([sys.executable, "-c", check], cwd=bundle, check=True)


def test_a_bundle_without_an_onnx_file_promises_nothing_of_onnxruntime():
    files = operator_files("m", manifest(files={"MINDIR": "model.mindir"}))
    assert set(files) == {"README.md"}
    assert "pip install -r requirements.txt && " in files["README.md"]
    assert "onnx" not in files["README.md"].lower().replace("requirements", "")
    airborne = operator_files("m", manifest(files={"AIR": "model.air"}))["README.md"]
    assert "## Run" not in airborne
    assert "convert" in airborne


# what a server is installed from


def pinned(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in lines if line}


def closure(names):
    """Distributions and all that they require here."""
    found, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            required = (Requirement(line) for line in distribution(name).requires or ())
            waiting += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("name", ["requirements-server.txt", "requirements-export.txt"])
def test_the_versions_of_a_part_are_those_that_are_tested(name):
    assert pinned(name) < pinned("requirements.txt")


# Of every Python process that finds it, those that decode images for the server, too.
SITE = """
import importlib.util, os, sys
missing = set(os.environ["MISSING"].split(","))
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in missing else find(name, *rest)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def others(*requirements):
    """What can be imported here and is neither in these files, nor required by what is, nor the project itself."""
    brought = closure(Requirement(line).name for name in requirements for line in pinned(name))
    brought.add(canonicalize_name("mindcv_reparam"))  # where a build has left its description
    found = packages_distributions().items()
    return {module for module, names in found if not {canonicalize_name(name) for name in names} & brought}


@pytest.fixture
def only(tmp_path, monkeypatch):
    """Lets processes import what some requirements bring, and nothing else that is installed here."""

    def let(*requirements):
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(SITE)
        monkeypatch.setitem(processes.ENVIRONMENT, "PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
        monkeypatch.setenv("MISSING", ",".join(sorted(others(*requirements))))

    return let


@pytest.mark.slow
def test_a_bundle_is_verified_and_served_by_what_the_server_s_requirements_bring(tmp_path, only):
    bundle = write_bundle(tmp_path / "colours")
    write_sample(bundle, read_manifest(bundle), bundle_program(bundle))
    write_checksums(bundle)
    only("requirements-server.txt")
    assert {"mindspore", "onnx", "scipy", "numba", "matplotlib", "mpi4py"} <= set(os.environ["MISSING"].split(","))
    gone = processes.start([sys.executable, "-c", "import mindspore"])
    verify = processes.start([sys.executable, "-m", "mindcv_reparam", "verify", str(bundle)])
    assert "No module named 'mindspore'" in gone.communicate(timeout=60)[1]
    output, errors = verify.communicate(timeout=60)
    assert "ONNX: the outputs of the sample differ by 0.0e+00" in output, errors
    with Server(bundle) as server:
        status, _, body = server.request(CLASSIFY, picture("green"))
        assert (status, json.loads(body)["classes"][0]["label"]) == (200, "green")


@pytest.mark.slow
def test_what_converts_and_exports_needs_no_package_of_training(tmp_path, only):
    info = CheckpointInfo(
        "fastvit_t8", {"num_classes": 4, "img_size": 32, "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    )
    save_checkpoint(tmp_path / "net.ckpt", create_model("fastvit_t8", **info.hparams), info)
    only("requirements-export.txt")
    missing = {"mpi4py", "numba", "matplotlib", "faster_coco_eval", "tensorboardX", "fastapi", "uvicorn", "simplejpeg"}
    assert missing <= set(os.environ["MISSING"].split(","))
    package = ROOT / "mindcv_reparam"
    files = [path.relative_to(ROOT) for room in ("export", "convert") for path in (package / room).rglob("*.py")]
    modules = [".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py"]
    code = (
        "import importlib, sys; from mindcv_reparam.__main__ import main\n"
        "main('convert net.ckpt -o net.safetensors --to timm'.split())\n"
        "for name in sys.argv[1:]: importlib.import_module(name)"
    )
    job = processes.start([sys.executable, "-c", code, "mindcv_reparam.commands.export", *modules], cwd=tmp_path)
    status, output, errors = processes.finish(job, 240)
    assert status == 0, errors
    assert "tensors of fastvit_t8 (train) in the names of timm" in output


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    text = (ROOT / "docs/deploy/mindcv-reparam@.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    python, *words = shlex.split(line.removeprefix("ExecStart=").replace("%i", "fastvit_t8"))
    parse(shlex.join(["python", *words]))
    assert words[:4] == ["-m", "mindcv_reparam", "serve", "/srv/bundles/fastvit_t8"]
    assert int(words[-1]) < int(text.partition("TimeoutStopSec=")[2].split()[0])  # the server's patience, systemd's
    for unit, status in ((text, 1), (text.replace(python, sys.executable), 0)):
        (tmp_path / "mindcv-reparam@.service").write_text(unit)
        command = ["systemd-analyze", "verify", str(tmp_path / "mindcv-reparam@.service")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr == "") == (status, status == 0), done.stderr
