"""transformers' RT-DETR in PyTorch. Argument: JSON with model, size, batch, threads, weights and form.

form: "weights", which writes random ones as ``model.safetensors`` into the folder ``weights`` and ends; of such ones
"inference" or "compiled" (its RepVGG blocks fused, as the authors' deploy model has them), "step" (of training),
"count", which prints the deploy model's parameters and ends, or "onnx", which writes ``file``, with a ``dynamic`` batch
or without, and ends; "import" (calls that do nothing).
"""

import json
import sys
from pathlib import Path

import torch
from random_detector import configuration, randomise
from safetensors.torch import load_model
from serve import serve
from torch import nn
from transformers import RTDetrForObjectDetection
from transformers.models.rt_detr.modeling_rt_detr import RTDetrRepVggBlock

OBJECTS = 8  # of an image; COCO's have 7.3 on average


class Raw(nn.Module):
    """Images → logits and boxes of the queries."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.net(images)
        return output.logits, output.pred_boxes


def kernel_and_bias(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a convolution and the norm behind it, as one."""
    norm = layer.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return layer.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def deployed(net: nn.Module) -> nn.Module:
    """In place: one convolution for each RepVGG block, as ``convert_to_deploy`` of the authors makes it."""
    for module in list(net.modules()):
        for name, block in module.named_children():
            if isinstance(block, RTDetrRepVggBlock):
                (kernel, bias), (point, more) = kernel_and_bias(block.conv1), kernel_and_bias(block.conv2)
                one = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                one.weight.data, one.bias.data = kernel + nn.functional.pad(point, [1, 1, 1, 1]), bias + more
                setattr(module, name, nn.Sequential(one, block.activation))
    return net


def count(net: nn.Module) -> int:
    """Scalars that are trained, among them those of norms whose statistics are frozen."""
    frozen = [value.numel() for name, value in net.named_buffers() if name.endswith((".weight", ".bias"))]
    return sum(parameter.numel() for parameter in net.parameters()) + sum(frozen)


def training_step(net: nn.Module, images: torch.Tensor):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4)
    side = torch.linspace(0.1, 0.4, OBJECTS)
    boxes = torch.stack([1 - side, side, side, side], 1)
    labels = [{"class_labels": torch.arange(OBJECTS), "boxes": boxes} for _ in images]

    def step() -> None:
        optimizer.zero_grad()
        net(images, labels=labels).loss.backward()
        optimizer.step()

    return step


def network(settings: dict) -> RTDetrForObjectDetection:
    net = RTDetrForObjectDetection(configuration(settings["model"], settings["size"]))
    if settings["weights"]:
        load_model(net, Path(settings["weights"]) / "model.safetensors")
        return net
    return randomise(net)


def main(settings: dict) -> None:
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    form, size = settings["form"], settings["size"]
    if form == "import":
        serve(lambda: None)
    elif form == "weights":
        network({**settings, "weights": ""}).save_pretrained(settings["weights"])
    else:
        net = network(settings)
        images = torch.rand(settings["batch"], 3, size, size)
        if form == "step":
            serve(training_step(net.train(), images))
            return
        with torch.no_grad():
            net = Raw(deployed(net.eval()))
        if form == "count":
            print(count(net))
        elif form == "onnx":
            names = dict(input_names=["images"], output_names=["logits", "boxes"])
            axes = {"images": {0: "batch"}} if settings["dynamic"] else None
            torch.onnx.export(net, images, settings["file"], opset_version=17, dynamo=False, dynamic_axes=axes, **names)
        else:
            call = torch.compile(net) if form == "compiled" else net
            with torch.inference_mode():
                serve(lambda: call(images))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
