"""Print the operators of timm's ONNX export of some models, a JSON line each: {"name": …, "operators": ["Conv", …]}.

Run by export_table.py with the Python of an environment that has torch, timm and onnx, which this project never needs.
Networks are fused by timm's ``reparameterize_model`` where it knows how; the exporter folds a BatchNorm into the
convolution before it.
"""

import io
import json
import sys
import warnings

import cpu_torchvision  # noqa: F401
import onnx
import timm
import torch
from timm.utils.model import reparameterize_model

OPSET = 17

for name in sys.argv[1:]:
    net = reparameterize_model(timm.create_model(name, pretrained=False).eval())
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            torch.zeros(1, *net.default_cfg["input_size"]),
            file,
            opset_version=OPSET,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    print(json.dumps({"name": name, "operators": [node.op_type for node in nodes]}), flush=True)
