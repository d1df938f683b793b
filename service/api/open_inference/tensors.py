"""Reads and writes tensors of the Open Inference Protocol, without trusting the sizes that clients declare.

Before it is used, a shape is compared with the limits, and a length with the bytes that have arrived.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from service.api.json_writer import json_numbers
from service.api.open_inference.schemas import IMAGE, TEXT, InferRequest, InputTensor
from service.api.problems.table import FieldErrors
from service.api.request.image_field import image_from_bytes, image_from_text
from service.api.request.strict_json import parse_json_object
from service.api.request.validation import validate_fields
from service.classification.types import ImageSource
from service.errors import InvalidImage, MalformedRequest, PayloadTooLarge
from service.images.fetching import ImageFetcher
from service.model.arrays import STORED_FLOAT32, Pixels, Vectors
from service.model.manifest import ImageSection

_STEP: Final = 2**14
"""Numbers handled at once: what is longer is done piece by piece, so that other threads run meanwhile."""
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorLimits:
    """Limits on images and texts in one request, and the size of the model's images, in pixels."""

    images: int
    texts: int
    image: ImageSection


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A request with its tensors read; an input that was not sent is empty.

    Attributes:
        images: encoded images, or one array, uint8 `[images, height, width, 3]`.
    """

    request: InferRequest
    images: Sequence[ImageSource] | Pixels
    texts: Sequence[str]


def read_infer(
    body: bytes, header_length: str | None, limits: TensorLimits, fetcher: ImageFetcher | None = None
) -> TensorRequest:
    """Read a request: JSON, followed by binary tensors if `header_length` has the length of the JSON.

    With a `fetcher` images may be URLs, which are not fetched here.

    Raises:
        MalformedRequest: lengths, shapes and data do not match, or the JSON is invalid.
        FieldErrors: a field is missing, unknown or of the wrong type.
        PayloadTooLarge: too many images or texts.
        InvalidImage: an image in JSON is not base64, or is a URL without a fetcher.
    """
    end = _json_length(header_length, len(body))
    request = validate_fields(InferRequest, parse_json_object(body[:end], numbers=True))
    try:
        return _read_inputs(request, memoryview(body)[end:], limits, fetcher)
    finally:
        for tensor in request.inputs:
            _free(tensor.data)


def _read_inputs(
    request: InferRequest, rest: memoryview, limits: TensorLimits, fetcher: ImageFetcher | None
) -> TensorRequest:
    inputs: dict[str, Any] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise FieldErrors([(f"inputs[{index}]", f"{tensor.name} is given more than once")])
        count = _count(tensor, limits)
        if not isinstance(tensor.data, list | None):
            raise FieldErrors([(f"inputs[{index}].data", "must be a list")])
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise MalformedRequest(f"The input {tensor.name} must have exactly one of data and binary_data_size.")
        if size is None:
            assert tensor.data is not None  # noqa: S101 - checked above
            inputs[tensor.name] = _from_json(tensor, count, _flat(tensor.name, tensor.data, tensor.shape), fetcher)
            continue
        if size > len(rest):
            raise MalformedRequest(
                f"The binary_data_size of the input {tensor.name} is larger than the {len(rest)} bytes that are left."
            )
        inputs[tensor.name] = _from_binary(tensor, count, rest[:size], fetcher)
        rest = rest[size:]
    if len(rest):
        raise MalformedRequest(
            f"{len(rest)} bytes follow the last input. The binary_data_size of the inputs must add up to all bytes."
        )
    return TensorRequest(request, inputs.get(IMAGE, ()), inputs.get(TEXT, ()))


def write_infer(answer: Mapping[str, Any], outputs: Sequence[tuple[str, Vectors, bool]]) -> tuple[bytes, int | None]:
    """Write an answer.

    Args:
        answer: its members except `outputs`.
        outputs: name, float32 of any shape, and whether the data follow the JSON.

    Returns:
        The body, and the length of its JSON if binary data follow.
    """
    tensors, tail = [], []
    for name, values, binary in outputs:
        head = json.dumps({"name": name, "datatype": "FP32", "shape": list(values.shape)})[:-1]
        if binary:
            tail.append(values.astype(STORED_FLOAT32).tobytes())
            tensors.append(f'{head}, "parameters": {{"binary_data_size": {len(tail[-1])}}}}}')
        else:
            tensors.append(f'{head}, "data": [{json_numbers(values)}]}}')
    written = f'{json.dumps(dict(answer))[:-1]}, "outputs": [{", ".join(tensors)}]}}'.encode()
    return b"".join([written, *tail]), len(written) if tail else None


def _json_length(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not (header.isascii() and header.isdigit()):
        raise MalformedRequest("Inference-Header-Content-Length is not a number.")
    if (length := int(header[:20])) > total:
        raise MalformedRequest("Inference-Header-Content-Length is larger than the body.")
    return length


def _count(tensor: InputTensor, limits: TensorLimits) -> int:
    """Check a tensor's shape against the limits; return the declared number of images or texts."""
    count, *inner = tensor.shape
    if tensor.datatype == "UINT8":
        wanted = [limits.image.height, limits.image.width, 3]
        if tensor.name != IMAGE or inner != wanted:
            raise MalformedRequest(
                f"Only the input image may be UINT8, with the shape [n, {', '.join(map(str, wanted))}]."
            )
    elif inner not in ([], [1]):
        raise MalformedRequest(f"The input {tensor.name} must have the shape [n] or [n, 1] with the datatype BYTES.")
    limit, things = (limits.images, "images") if tensor.name == IMAGE else (limits.texts, "texts")
    if count > limit:
        raise PayloadTooLarge(f"The request has more than {limit} {things}, the limit of this server.")
    return count


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Flatten data that are nested like `shape`; accept flat data."""
    size = math.prod(shape)
    if len(data) == size and not any(isinstance(each, list) for each in data):
        return data
    for length in shape[1:]:
        if not all(isinstance(each, list) and len(each) == length for each in data):
            raise _disagrees(name)
        data = [each for inner in data for each in inner]
    if len(data) != size:
        raise _disagrees(name)
    return data


def _from_json(
    tensor: InputTensor, count: int, flat: list[Any], fetcher: ImageFetcher | None
) -> Sequence[str] | Sequence[ImageSource] | Pixels:
    if tensor.datatype == "UINT8":
        try:
            pixels = b"".join(bytes(flat[at : at + _STEP]) for at in range(0, len(flat), _STEP))
        except (TypeError, ValueError) as exc:
            raise MalformedRequest("The data of a UINT8 tensor must be whole numbers from 0 to 255.") from exc
        return _pixels(tensor, pixels)
    if not all(isinstance(each, str) for each in flat):
        raise MalformedRequest(f"The data of the input {tensor.name} must be strings.")
    if tensor.name == TEXT:
        return list(flat)
    return _sources([partial(image_from_text, flat[index], fetcher) for index in range(count)])


def _free(data: object) -> None:
    """Empty `data`, which may hold millions of numbers, in steps: to free them at once would stop all threads."""
    while isinstance(data, list) and data:
        del data[-_STEP:]


def _from_binary(
    tensor: InputTensor, count: int, data: memoryview, fetcher: ImageFetcher | None
) -> Sequence[str] | Sequence[ImageSource] | Pixels:
    if tensor.datatype == "UINT8":
        if len(data) != math.prod(tensor.shape):
            raise _disagrees(tensor.name)
        return _pixels(tensor, data)
    elements = []
    for _ in range(count):
        if len(data) < _LENGTH.size:
            raise _disagrees(tensor.name)
        (length,) = _LENGTH.unpack_from(data)
        data = data[_LENGTH.size :]
        if length > len(data):
            raise MalformedRequest(f"An element of the input {tensor.name} is longer than its binary_data_size allows.")
        elements.append(bytes(data[:length]))
        data = data[length:]
    if len(data):
        raise _disagrees(tensor.name)
    if tensor.name == IMAGE:
        return _sources([partial(image_from_bytes, element, fetcher) for element in elements])
    try:
        return [element.decode("utf-8") for element in elements]
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The elements of the input text must be in UTF-8.") from exc


def _sources(images: Sequence[Callable[[], ImageSource]]) -> list[ImageSource]:
    """Call each function and return the results. Raises `InvalidImage` with the number of the first faulty image."""
    sources = []
    for index, image in enumerate(images):
        try:
            sources.append(image())
        except InvalidImage as exc:
            raise InvalidImage(f"Image {index}: {exc.detail}") from exc
    return sources


def _pixels(tensor: InputTensor, data: bytes | memoryview) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(tensor.shape)


def _disagrees(name: str) -> MalformedRequest:
    return MalformedRequest(f"The number of elements of the input {name} does not match its shape.")
