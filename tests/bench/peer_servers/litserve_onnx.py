"""LitServe with onnxruntime: the same ONNX encoders, dynamic batches, label vectors cached. Needs no torch.

python litserve_onnx.py BUNDLE PORT
"""

import base64
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

_BATCH = 32
_SIZE = (224, 224)


class Clip(litserve.LitAPI):  # type: ignore[misc]
    """Zero-shot classification in the style of LitServe's documentation."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(max_batch_size=_BATCH, batch_timeout=0.005)
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Open both encoders in the worker."""
        self._image = onnxruntime.InferenceSession(str(self._bundle / "image_encoder.onnx"))
        self._text = onnxruntime.InferenceSession(str(self._bundle / "text_encoder.onnx"))
        self._tokenizer = Tokenizer.from_file(str(self._bundle / "tokenizer.json"))
        manifest = json.loads((self._bundle / "manifest.json").read_text())
        self._end = manifest["text"]["end_of_text_id"]
        self._known: dict[tuple[str, ...], Any] = {}

    def decode_request(self, request: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
        """Decode and resize the picture."""
        picture = Image.open(BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        pixels = np.asarray(ImageOps.fit(picture, _SIZE, Image.Resampling.BICUBIC))
        return pixels, tuple(request["labels"])

    def batch(self, inputs: list[Any]) -> tuple[Any, list[tuple[str, ...]]]:
        """Stack the pictures of a batch."""
        return np.stack([pixels for pixels, _ in inputs]), [labels for _, labels in inputs]

    def predict(self, x: tuple[Any, list[tuple[str, ...]]]) -> list[dict[str, float]]:
        """Encode a batch's pictures, and score each against its labels."""
        pixels, labels = x
        vectors = self._image.run(None, {self._image.get_inputs()[0].name: pixels})[0]
        return [self._scored(vector, of_picture) for vector, of_picture in zip(vectors, labels, strict=True)]

    def unbatch(self, output: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return each request's own answer."""
        return output

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        """Return the scores unchanged."""
        return output

    def _scored(self, vector: Any, labels: tuple[str, ...]) -> dict[str, float]:
        if labels not in self._known:
            self._known[labels] = self._encoded(labels)
        logits = 100.0 * (self._known[labels] @ vector)
        shares = np.exp(logits - logits.max())
        return dict(zip(labels, (shares / shares.sum()).tolist(), strict=True))

    def _encoded(self, labels: tuple[str, ...]) -> Any:
        ids = [self._tokenizer.encode(f"a photo of a {label}.").ids for label in labels]
        longest = max(map(len, ids))
        padded = np.array([row + [self._end] * (longest - len(row)) for row in ids], np.int64)
        return self._text.run(None, {self._text.get_inputs()[0].name: padded})[0]


if __name__ == "__main__":
    server = litserve.LitServer(Clip(Path(sys.argv[1])), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
