"""timm's networks in PyTorch. Argument: JSON with model, size, batch, threads and form.

form: "inference" or "compiled" (fused by timm where it can), "step" (of training), "import" (calls that do nothing), or
"onnx", which writes ``file``, with a ``dynamic`` batch or without, and ends.
"""

import json
import sys
from pathlib import Path

import torch
from serve import serve

sys.path.append(str(Path(__file__).parents[1]))

import cpu_torchvision  # noqa: F401
import timm
from timm.utils.model import reparameterize_model

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])
torch.manual_seed(0)
if settings["form"] == "import":
    serve(lambda: None)
    sys.exit()
net = timm.create_model(settings["model"], drop_rate=settings.get("drop_rate", 0.0))
images = torch.randn(settings["batch"], 3, settings["size"], settings["size"])
if settings["form"] == "step":
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    labels = torch.arange(settings["batch"])

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    serve(step)
else:
    net = reparameterize_model(net.eval())
    if settings["form"] == "onnx":
        axes = {"x": {0: "batch"}} if settings["dynamic"] else None
        torch.onnx.export(
            net, images, settings["file"], opset_version=17, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    else:
        call = torch.compile(net) if settings["form"] == "compiled" else net
        with torch.inference_mode():
            serve(lambda: call(images))
