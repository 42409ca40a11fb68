"""Convert an ONNX file with MindSpore Lite and run it. For Python 3.7, the only one its 2.0.0 has a wheel for.

python lite_run.py model.onnx input.npy threads output.npy
"""

import sys

import mindspore_lite as lite
import numpy as np

model, images, threads, output = sys.argv[1:]
lite.Converter().convert(lite.FmkType.ONNX, model, model)
context = lite.Context()
context.target = ["cpu"]
context.cpu.thread_num = int(threads)
program = lite.Model()
program.build_from_file(model + ".mindir", lite.ModelType.MINDIR, context)
x = np.load(images)
tensors = program.get_inputs()
program.resize(tensors, [list(x.shape)])
tensors[0].set_data_from_numpy(x)
np.save(output, program.predict(tensors)[0].get_data_to_numpy())
