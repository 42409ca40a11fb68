"""transformers' RT-DETR-R18 with random weights. Argument: JSON with folder and size.

Writes ``model.safetensors`` and ``results.npz`` (images, logits, boxes) into the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from random_detector import configuration, randomise
from transformers import RTDetrForObjectDetection

settings = json.loads(sys.argv[1])
folder, size = Path(settings["folder"]), settings["size"]
torch.manual_seed(0)
net = randomise(RTDetrForObjectDetection(configuration("rtdetr_r18vd"))).eval()
with torch.no_grad():
    images = torch.rand(2, 3, size, size)
    output = net(images)
net.save_pretrained(folder)
np.savez(folder / "results.npz", images=images, logits=output.logits, boxes=output.pred_boxes)
