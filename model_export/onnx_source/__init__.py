"""Published ONNX encoders → a bundle, by surgery on their graphs. Nothing here imports torch."""

from model_export.onnx_source.source import OnnxOptions, OnnxSource, load, recognises
from model_export.onnx_source.writing import write

__all__ = ["OnnxOptions", "OnnxSource", "load", "recognises", "write"]
