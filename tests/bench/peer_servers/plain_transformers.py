"""The plain way: FastAPI around transformers' zero-shot image classification. Needs nothing of the project.

python plain_transformers.py MODEL_FOLDER PORT
"""

import sys
from io import BytesIO
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Query
from PIL import Image
from transformers import pipeline
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def application(folder: str) -> FastAPI:
    """Load the model, and answer POST /classify with a picture as its body."""
    # The processor on Pillow: the other one needs torchvision.
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    classify: Any = pipeline("zero-shot-image-classification", model=folder, image_processor=processor, device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/classify")
    def predict(picture: Annotated[bytes, Body(media_type="image/jpeg")], labels: Annotated[list[str], Query()]) -> Any:
        opened = Image.open(BytesIO(picture)).convert("RGB")
        return classify(opened, candidate_labels=labels, hypothesis_template="a photo of a {}.")

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
