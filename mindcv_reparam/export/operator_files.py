"""What somebody needs who has a bundle and nothing else: a README, Triton's configuration, a Dockerfile."""

import json
import shlex
from collections.abc import Mapping
from urllib.parse import quote

from mindcv_reparam import __version__
from mindcv_reparam.bundle.manifest import LABELS, MANIFEST, PREPROCESSING, Manifest
from mindcv_reparam.bundle.preprocessing import in_words
from mindcv_reparam.bundle.triton import CONFIG, onnx_config, text_format
from mindcv_reparam.tensors import DATATYPES

README, DOCKERFILE = "README.md", "Dockerfile"
_SHOWN = 5  # labels


def operator_files(name: str, manifest: Manifest) -> Mapping[str, str]:
    """The texts for a bundle, by file name; those for onnxruntime and Triton where there is an ONNX file.

    Args:
        name: of the model on a server, which is that of the bundle's folder.
    """
    files = {README: _readme(name, manifest)}
    if "ONNX" in manifest.files:
        files[CONFIG] = text_format(onnx_config(name, manifest))
        files[DOCKERFILE] = _dockerfile(name, manifest)
    return files


def _readme(name: str, manifest: Manifest) -> str:
    results, state = manifest.results, "as it trains" if manifest.state == "train" else f"fused ({manifest.state})"
    runs = "ONNX" in manifest.files or "MINDIR" in manifest.files
    parts = [
        f"# {name}\n\n{manifest.model}, {state}, for {manifest.task}, written by mindcv_reparam {__version__}. "
        "report.md tells where it comes from and what it costs.\n",
        _commands(name, manifest) if runs else "",
        _tensors(manifest),
        f"## Preprocessing\n\n{in_words(manifest)} `{PREPROCESSING}` has the numbers; `sample/image.png` becomes "
        "`sample/input.npy`, and `sample/expected.npz` is what the model makes of it.\n",
        _labels(manifest) if results.tells(manifest.output_kind) else "",
        _ONNX.format(file=manifest.files["ONNX"], inputs=_example(manifest), **_names(name))
        if "ONNX" in manifest.files
        else "",
        _files(manifest),
    ]
    return "\n".join(part for part in parts if part)


def _commands(name: str, manifest: Manifest) -> str:
    """How to get the program, check, predict and serve."""
    route, tells = manifest.results.route, manifest.results.tells(manifest.output_kind)
    requirements = "requirements-server.txt" if "ONNX" in manifest.files else "requirements.txt"
    infer = "$ python -m mindcv_reparam infer . sample/image.png\n" if tells else ""
    ask = f"/{route}' --data-binary @sample/image.png" if tells else "'"
    return _COMMANDS.format(
        requirements=requirements,
        without=", without MindSpore" if "ONNX" in manifest.files else "",
        infer=infer,
        ask=f"curl 'http://127.0.0.1:8000/v2/models/{quote(name)}{ask}",
        **_names(name),
    )


def _names(name: str) -> dict[str, str]:
    """The name as a shell takes it, by itself and within paths and assignments."""
    quoted = shlex.quote(name)
    return {"name": quoted, "serve": shlex.quote(f"{name}=.")}


def _tensors(manifest: Manifest) -> str:
    batch = ", ".join(map(str, manifest.batch_sizes or ())) or "any"
    lines = [
        f"## Inputs and outputs\n\nBatch sizes: {batch}. The first axis is the batch.\n",
        "| | name | datatype | shape | meaning |\n|---|---|---|---|---|",
    ]
    meanings = {manifest.input.name: "images as below", **manifest.meanings}
    for role, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
            meaning = meanings.get(spec.name, manifest.output_kind)
            lines.append(f"| {role} | `{spec.name}` | {DATATYPES[spec.dtype]} | ({shape}) | {meaning} |")
    return "\n".join(lines) + "\n"


def _labels(manifest: Manifest) -> str:
    shown = ", ".join(json.dumps(label, ensure_ascii=False) for label in manifest.labels[:_SHOWN])
    more = ", …" if len(manifest.labels) > _SHOWN else ""
    return f"## Labels\n\n`{LABELS}` has {len(manifest.labels)}, a line each, by index from 0: {shown}{more}\n"


def _example(manifest: Manifest) -> str:
    """The sample's inputs as a Python expression; the image of the sample has 320 × 240 pixels."""
    sizes = f', "{manifest.sizes.name}": np.array([[320, 240]] * len(images), np.int32)' if manifest.sizes else ""
    return f'{{"{manifest.input.name}": images{sizes}}}'


def _files(manifest: Manifest) -> str:
    rows = {
        MANIFEST: "all of this for programs",
        **{file: f"the model, {kind}" for kind, file in manifest.files.items()},
        "report.md": "origin, costs, agreement with the checkpoint",
        "ascend/": "command lines and settings of Ascend's converters",
        "SHA256SUMS": "of all other files: `sha256sum --check SHA256SUMS`, and `verify` does",
    }
    return "## Files\n\n| | |\n|---|---|\n" + "".join(f"| `{file}` | {text} |\n" for file, text in rows.items())


def _dockerfile(name: str, manifest: Manifest) -> str:
    files = [MANIFEST, LABELS, PREPROCESSING, manifest.files["ONNX"], "SHA256SUMS"]
    entry = ["python", "-m", "mindcv_reparam", "serve", f"{name}=/bundle", "--host", "0.0.0.0"]
    return _DOCKERFILE.format(files=json.dumps([*files, "/bundle/"]), entry=json.dumps(entry, ensure_ascii=False))


_COMMANDS = """## Run

Once, in a checkout of mindcv_reparam{without}, with Python 3.11 or 3.12:

```console
$ pip install -r {requirements} && pip install --no-deps .
```

In this folder:

```console
$ python -m mindcv_reparam verify .
{infer}$ python -m mindcv_reparam serve {serve}
```

Once it serves, from another terminal:

```console
$ {ask}
```

The server speaks the Open Inference Protocol v2 over HTTP; `http://127.0.0.1:8000/docs` has its routes.
"""
_ONNX = """## Elsewhere

`{file}` in onnxruntime alone:

```python
import numpy as np
import onnxruntime

images = np.load("sample/input.npy")
outputs = onnxruntime.InferenceSession("{file}").run(None, {inputs})
```

In Triton, which also has gRPC:

```console
$ mkdir -p ../model_repository/{name}/1
$ cp {file} ../model_repository/{name}/1/
$ cp config.pbtxt labels.txt ../model_repository/{name}/
$ tritonserver --model-repository=$PWD/../model_repository
```

In a container, by the `Dockerfile` here, with Docker 23 or newer:

```console
$ docker build -t bundle --build-context mindcv_reparam=/path/to/mindcv_reparam .
$ docker run --rm -p 8000:8000 --read-only --tmpfs /tmp bundle
```
"""
_DOCKERFILE = """# The server and the ONNX file: onnxruntime, no MindSpore. In this folder, with Docker 23 or newer:
#   docker build -t bundle --build-context mindcv_reparam=/path/to/mindcv_reparam .
# The packages take 195 MB on x86-64, beside the base image and the model. Not built here.
FROM python:3.11-slim
COPY --from=mindcv_reparam requirements-server.txt pyproject.toml README.md LICENSE /source/
COPY --from=mindcv_reparam mindcv_reparam /source/mindcv_reparam
RUN pip install --no-cache-dir -r /source/requirements-server.txt \\
    && pip install --no-cache-dir --no-deps /source
COPY {files}
USER nobody
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD python -c \\
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=5)"
ENTRYPOINT {entry}
"""
