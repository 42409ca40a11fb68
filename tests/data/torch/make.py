"""Writes the files of this folder, as PyTorch 2.13, mmengine 0.10.7 and pytorch-lightning 2.6.6 do.

pip install torch==2.13.0 mmengine==0.10.7 pytorch-lightning==2.6.6 safetensors
python tests/data/torch/make.py
"""

import argparse
import collections
import enum
import os
import pathlib
import warnings

import numpy as np
import pytorch_lightning as lightning
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent
warnings.simplefilter("ignore")


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "float32": base.clone(),
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "float64": base.double(),
        "transposed": base.clone().T,
        "part": torch.arange(100, dtype=torch.float32)[10:70].reshape(10, 6)[:, ::2],
        "tied": base,
        "tied_too": base,
        "expanded": torch.tensor([3.0]).expand(2, 3),
        "scalar": torch.tensor(7),
        "parameter": nn.Parameter(base.clone()),
        "bool": torch.tensor([True, False]),
        "uint8": torch.tensor([1, 255], dtype=torch.uint8),
        "int8": torch.tensor([-1, 127], dtype=torch.int8),
        "int16": torch.tensor([-3], dtype=torch.int16),
        "int32": torch.tensor([-4], dtype=torch.int32),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
    }


class Colour(enum.Enum):
    RED = 1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        nn.init.constant_(self.stem[0].weight, 0.25)


class SmallModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 1)
        nn.init.constant_(self.backbone.weight, 0.25)

    def forward(self, inputs, mode="tensor"):
        return {"loss": self.backbone(inputs).sum()}


class SmallModule(lightning.LightningModule):
    def __init__(self, lr: float, colour: Colour, folder: pathlib.Path) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Linear(2, 1)
        nn.init.constant_(self.model.weight, 0.25)

    def training_step(self, batch, index):
        return self.model(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ran",)


def mmengine_file() -> None:
    runner = Runner(
        SmallModel(),
        work_dir="/tmp/mmengine",
        train_dataloader=dict(
            dataset=[torch.ones(2)] * 3, sampler=dict(type="DefaultSampler", shuffle=False), batch_size=1
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        custom_hooks=[EMAHook()],
        log_level="ERROR",
    )
    runner.train()
    runner.message_hub.update_scalar("train/accuracy", np.float64(0.5))
    runner.save_checkpoint(str(HERE), "mmengine.pth", save_optimizer=True)


def lightning_file() -> None:
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    data = torch.utils.data.DataLoader([torch.ones(2)] * 3)
    trainer.fit(SmallModule(0.1, Colour.RED, HERE.relative_to(HERE.parents[1])), data)
    trainer.save_checkpoint(HERE / "lightning.ckpt")


def main() -> None:
    torch.save(tensors(), HERE / "weights.pth")
    torch.save(tensors(), HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    state = Small().state_dict()
    beside = {
        "best": np.float64(81.25),
        "curve": np.arange(3),
        "args": argparse.Namespace(lr=0.1),
        "options": collections.defaultdict(list, {"a": [1]}),
        "colour": Colour.RED,
        "path": pathlib.Path("runs"),
        "device": torch.device("cpu"),
        "type": torch.float16,
        "names": {"x", "y"},
        "function": os.path.join,
    }
    torch.save({"epoch": 3, "state_dict": state, **beside}, HERE / "training.pth.tar")
    torch.save(Small(), HERE / "module.pt")
    torch.save({"model": Small().half(), "epoch": 1}, HERE / "module_inside.pt")
    torch.save(Small(), HERE / "module_legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(Small().eval().stem).save(HERE / "script.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, HERE / "sparse.pth")
    torch.save({"a": torch.eye(3).to_sparse_csr()}, HERE / "sparse_csr.pth")
    torch.save({"a": torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)}, HERE / "quantised.pth")
    torch.save({"a": torch.eye(3).to(torch.float8_e4m3fn)}, HERE / "float8.pth")
    torch.save({"a": torch.eye(3, dtype=torch.complex64)}, HERE / "complex.pth")
    torch.save({"a": torch.empty(3, device="meta")}, HERE / "meta.pth")
    torch.save({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, HERE / "nested.pth")
    torch.save({"state_dict": state, "extra": Hostile()}, HERE / "hostile.pth")
    torch.save(
        {"state_dict": state, "extra": Hostile()}, HERE / "hostile_legacy.pth", _use_new_zipfile_serialization=False
    )
    torch.save([1, 2], HERE / "list.pth")
    torch.save({"a": 1}, HERE / "numbers.pth")
    save_file({"a": torch.eye(3).to(torch.float8_e4m3fn)}, HERE / "float8.safetensors")
    save_file({"a": torch.ones(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, HERE / "float4.safetensors")
    mmengine_file()
    lightning_file()


if __name__ == "__main__":
    main()
