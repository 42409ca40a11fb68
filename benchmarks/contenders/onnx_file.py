"""An ONNX file in onnxruntime. Argument: JSON with file, size, batch and threads."""

import json
import sys

import numpy as np
import onnxruntime
from serve import serve

settings = json.loads(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = settings["threads"]
session = onnxruntime.InferenceSession(settings["file"], options, providers=["CPUExecutionProvider"])
images = np.random.default_rng(0).standard_normal((settings["batch"], 3, settings["size"], settings["size"]))
inputs = {session.get_inputs()[0].name: images.astype(np.float32)}
serve(lambda: session.run(None, inputs))
