"""Routes of the Open Inference Protocol (v2), for clients of KServe and Triton."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.documentation.request_bodies import ModelName
from service.api.documentation.responses import error_responses
from service.api.json_writer import written
from service.api.open_inference.docs import INFER, METADATA, READY, Version
from service.api.open_inference.schemas import (
    IMAGE_EMBEDDINGS,
    OUTPUTS,
    SCORES,
    TEXT_EMBEDDINGS,
    InferRequest,
    Live,
    Ready,
    ServerInfo,
    metadata_json,
    version_of,
)
from service.api.open_inference.tensors import TensorLimits, TensorRequest, read_infer, write_infer
from service.api.problems.table import FieldErrors, UnsupportedMediaType
from service.api.request.body import JSON, OCTETS, media_type, read_body
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.off_loop import parsed
from service.api.request.query import refuse_query
from service.api.request.strict_json import parse_json_list
from service.api.services import services_of
from service.api.timing import server_timing
from service.api.warning_header import warning_headers
from service.classification.embedder import AS_WRITTEN, Embedded, EmbedQuery, scores_of
from service.errors import NotReady, UnknownModel
from service.inference.served_model import Model
from service.installation import VERSION
from service.model.answer_warnings import warn_of_lone_label
from service.model.arrays import Vectors
from service.settings import Settings

HEADER_LENGTH: Final = "inference-header-content-length"

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.get("", response_model=ServerInfo, summary="The server", responses=error_responses("/v2"))
async def server() -> Response:
    """Answers without a model too."""
    return JSONResponse({"name": "anyclass", "version": VERSION, "extensions": ["binary_tensor_data"]})


@router.get(
    "/health/live",
    response_model=Live,
    summary="Whether the process is alive",
    responses=error_responses("/v2/health/live", NotReady),
)
async def live(request: Request) -> Response:
    """Like `GET /livez`."""
    services_of(request).require_alive()
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    response_model=Ready,
    summary="Whether to send requests here",
    responses=error_responses("/v2/health/ready", NotReady),
)
async def ready(request: Request) -> Response:
    """Like `GET /readyz`."""
    services_of(request).lifecycle.require_ready()
    return JSONResponse({"ready": True})


# A model's alias may contain a slash, which clients do not encode; therefore the longer paths come first.
@router.get(
    "/models/{model:path}/versions/{version}/ready", summary="Whether a version of a model takes requests", **READY
)
async def version_ready(request: Request, model: ModelName, version: Version) -> Response:
    """A model has one version: the beginning of its revision."""
    return _ready(request, _find(request, model, version))


@router.get("/models/{model:path}/ready", summary="Whether a model takes requests", **READY)
async def model_ready(request: Request, model: ModelName) -> Response:
    """Every model that is served is ready as soon as the server is."""
    return _ready(request, _find(request, model))


@router.get("/models/{model:path}/versions/{version}", summary="A version of a model", **METADATA)
async def version_metadata(request: Request, model: ModelName, version: Version) -> Response:
    """Like `GET /v2/models/{model}`."""
    return _metadata(request, _find(request, model, version))


@router.get("/models/{model:path}", summary="A model", **METADATA)
async def model_metadata(request: Request, model: ModelName) -> Response:
    """Its inputs and outputs. `image` is BYTES, encoded images; UINT8 [n, height, width, 3] is accepted too."""
    return _metadata(request, _find(request, model))


@router.post(
    "/models/{model:path}/versions/{version}/infer", summary="Vectors and scores by a version of a model", **INFER
)
async def infer_by_version(request: Request, model: ModelName, version: Version) -> Response:
    """Like `POST /v2/models/{model}/infer`."""
    return await _infer(request, _find(request, model, version))


@router.post("/models/{model:path}/infer", summary="Vectors and scores", **INFER)
async def infer(request: Request, model: ModelName) -> Response:
    """Inputs: `image`, `text` or both. Outputs: `image_embeddings`, `text_embeddings` and, for both, `scores`."""
    return await _infer(request, _find(request, model))


async def _infer(request: Request, chosen: Model) -> Response:
    services = services_of(request)
    settings = services.settings
    if media_type(request) not in ("", JSON, OCTETS):
        raise UnsupportedMediaType(f"Send {JSON}, or {OCTETS} if binary tensors follow the JSON.")
    refuse_query(request)
    header_length = request.headers.get(HEADER_LENGTH)
    body = await read_body(request, settings)
    limits = TensorLimits(settings.max_batch_images, settings.max_embed_texts, chosen.manifest.image)
    sent = await parsed(body, lambda: read_infer(body, header_length, limits, services.image_fetcher))
    wanted = _requested_outputs(sent)
    parameters = sent.request.parameters
    query = EmbedQuery(
        sent.images,
        sent.texts,
        await _templates(parameters.templates, settings),
        method=parameters.scoring,
        temperature=parameters.temperature,
    )
    embedded = await cancel_on_disconnect(request, services.embedder.embed(query, model=chosen.name))
    content, json_length = await written(lambda: _answer(sent.request, embedded, wanted))
    lone = (
        warn_of_lone_label(sent.texts, parameters.scoring or chosen.manifest.scoring.kind) if SCORES in wanted else ()
    )
    headers = {"server-timing": server_timing(request.state.started, None), **warning_headers(lone + embedded.warnings)}
    if json_length is not None:
        headers[HEADER_LENGTH] = str(json_length)
    return Response(content, media_type=JSON if json_length is None else OCTETS, headers=headers)


def _ready(request: Request, model: Model) -> Response:
    services_of(request).lifecycle.require_ready()
    return JSONResponse({"name": model.name, "ready": True})


def _metadata(request: Request, model: Model) -> Response:
    (info,) = [info for info in services_of(request).models.describe() if info.name == model.name]
    return JSONResponse(metadata_json(info))


def _find(request: Request, name: str, version: str | None = None) -> Model:
    model = services_of(request).models.get(name)
    revision = model.manifest.revision
    if version not in (None, version_of(revision), revision):
        raise UnknownModel(f"Model {model.name} is served in version {version_of(revision)} only.")
    return model


def _requested_outputs(sent: TensorRequest) -> dict[str, bool]:
    """Return the requested outputs, or all possible ones, and whether the data of each follow the JSON."""
    possible = {
        IMAGE_EMBEDDINGS: bool(len(sent.images)),
        TEXT_EMBEDDINGS: bool(sent.texts),
        SCORES: bool(len(sent.images) and sent.texts),
    }
    binary = sent.request.parameters.binary_data_output
    if sent.request.outputs is None:
        return {name: binary for name in OUTPUTS if possible[name]}
    wanted: dict[str, bool] = {}
    for index, output in enumerate(sent.request.outputs):
        if not possible[output.name]:
            raise FieldErrors([(f"outputs[{index}]", f"{output.name} cannot be computed from these inputs")])
        if output.name in wanted:
            raise FieldErrors([(f"outputs[{index}]", f"{output.name} is given more than once")])
        own = output.parameters.binary_data
        wanted[output.name] = binary if own is None else own
    return wanted


async def _templates(given: str | None, settings: Settings) -> str | tuple[str, ...]:
    if given is None:
        return AS_WRITTEN
    if not given.lstrip().startswith("["):
        return given
    templates = await parsed(
        given, lambda: parse_json_list("parameters.templates", given, max_values=2 * settings.max_templates)
    )
    if not all(isinstance(template, str) for template in templates):
        raise FieldErrors([("parameters.templates", "must be a JSON list of strings")])
    return tuple(templates)


def _answer(request: InferRequest, embedded: Embedded, wanted: dict[str, bool]) -> tuple[bytes, int | None]:
    """Return the body and the length of its JSON as `write_infer`; runs in a thread."""
    values: dict[str, Vectors] = {IMAGE_EMBEDDINGS: embedded.images, TEXT_EMBEDDINGS: embedded.texts}
    if SCORES in wanted:
        parameters = request.parameters
        values[SCORES] = scores_of(embedded, parameters.scoring, parameters.temperature)
    manifest = embedded.model.manifest
    answer: dict[str, Any] = {"model_name": manifest.name, "model_version": version_of(manifest.revision)}
    if request.id is not None:
        answer["id"] = request.id
    return write_infer(answer, [(name, values[name], binary) for name, binary in wanted.items()])
