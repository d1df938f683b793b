"""Published ONNX encoders → a bundle, by surgery on their graphs. Nothing here imports torch."""
