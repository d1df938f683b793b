"""Published ONNX encoders → a bundle, by surgery on their graphs. Nothing here imports torch."""

from model_export.published_onnx.source import OnnxOptions, OnnxSource, load, recognises
from model_export.published_onnx.to_bundle import write

__all__ = ["OnnxOptions", "OnnxSource", "load", "recognises", "write"]
