"""JSON schemas of the Open Inference Protocol (v2).

https://github.com/kserve/open-inference-protocol; binary tensors follow Triton's extension of that name.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, SkipValidation

from service.api.request.validation import RequestModel
from service.inference.registry import ModelInfo
from service.model.choices import ScoringMethod

IMAGE: Final = "image"
TEXT: Final = "text"
IMAGE_EMBEDDINGS: Final = "image_embeddings"
TEXT_EMBEDDINGS: Final = "text_embeddings"
SCORES: Final = "scores"
OUTPUTS: Final = (IMAGE_EMBEDDINGS, TEXT_EMBEDDINGS, SCORES)

_MAX_NAME_CHARS: Final = 256
_MAX_DIMENSIONS: Final = 4
_REVISION_CHARS: Final = 12


class InputParameters(RequestModel):
    """Parameters of an input."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Bytes of this tensor after the JSON; `data` is left out then.")
    ] = None


class InputTensor(RequestModel):
    """An input. Its data are in `data`, in row order, flat or nested, or follow the JSON."""

    name: Literal["image", "text"]
    datatype: Annotated[
        Literal["BYTES", "UINT8"],
        Field(description="BYTES: encoded images, or texts. UINT8: images of the model's own size."),
    ]
    shape: Annotated[
        list[Annotated[int, Field(ge=1)]],
        Field(
            min_length=1, max_length=_MAX_DIMENSIONS, description="BYTES: [n] or [n, 1]. UINT8: [n, height, width, 3]."
        ),
    ]
    parameters: InputParameters = InputParameters()
    # Not copied by validation: there may be millions of numbers. Their reader checks them.
    data: Annotated[
        SkipValidation[list[Any] | None],
        Field(description="Texts; images as data URIs, base64 or URLs; or numbers from 0 to 255."),
    ] = None


class OutputParameters(RequestModel):
    """Parameters of an output."""

    binary_data: Annotated[bool | None, Field(description="Send the data after the JSON.")] = None


class RequestedOutput(RequestModel):
    """A requested output."""

    name: Literal["image_embeddings", "text_embeddings", "scores"]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(RequestModel):
    """Parameters of the whole request."""

    binary_data_output: Annotated[bool, Field(description="Send the data of all outputs after the JSON.")] = False
    templates: Annotated[
        str | None,
        Field(
            description="The prompt for each text: the name of one of the model's template sets, or a JSON list of "
            "templates in a string. If left out, texts are used as they are."
        ),
    ] = None
    scoring: Annotated[ScoringMethod | None, Field(description="The model's own scoring if left out.")] = None
    temperature: Annotated[float, Field(gt=0)] = 1.0


class InferRequest(RequestModel):
    """An inference request. `scores` require both inputs, `image` and `text`."""

    id: Annotated[str | None, Field(max_length=_MAX_NAME_CHARS, description="Returned in the answer.")] = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=2)]
    outputs: Annotated[
        list[RequestedOutput] | None,
        Field(max_length=len(OUTPUTS), description="All that the inputs allow if left out."),
    ] = None


class TensorInfo(BaseModel):
    """An input or output of a model; -1 in a shape stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ServerInfo(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The process is alive."""

    live: bool


class Ready(BaseModel):
    """The server takes requests."""

    ready: bool


class ModelReady(BaseModel):
    """A model takes requests."""

    name: str
    ready: bool


class ModelMetadata(BaseModel):
    """A model. Its only version is the beginning of its revision. `image` may also be UINT8 [n, height, width, 3]."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class OutputTensor(BaseModel):
    """An output. Its data are in `data`, flat, or follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferAnswer(BaseModel):
    """The requested outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def version_of(revision: str) -> str:
    """Return the version by which clients name a model of this revision."""
    return revision[:_REVISION_CHARS]


def metadata_json(info: ModelInfo) -> dict[str, Any]:
    """Return a model as `ModelMetadata` describes it."""
    return {
        "name": info.name,
        "versions": [version_of(info.revision)],
        "platform": f"onnxruntime_{info.provider}",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in (IMAGE, TEXT)],
        "outputs": [
            {"name": IMAGE_EMBEDDINGS, "datatype": "FP32", "shape": [-1, info.dim]},
            {"name": TEXT_EMBEDDINGS, "datatype": "FP32", "shape": [-1, info.dim]},
            {"name": SCORES, "datatype": "FP32", "shape": [-1, -1]},
        ],
    }
