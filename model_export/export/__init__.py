"""Make a bundle from a checkpoint, a training run or published ONNX graphs."""
