"""Makes a bundle of published ONNX encoders by changing their graphs. Nothing here imports torch."""
