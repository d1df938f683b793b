"""ONNX graphs: export from torch, folding, passes, precision."""
