"""Tensors of the Open Inference Protocol, read without trusting what they say about themselves, and written.

Nothing is allocated by a size that a client states: a shape is compared with the limits, and a length with the bytes
that are really there, before either is used.
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
from service.api.request.image_field import encoded_or_url, image_source
from service.api.request.strict_json import parse_json_object
from service.api.request.validation import validate_fields
from service.classification.types import ImageSource
from service.errors import InvalidImage, MalformedRequest, PayloadTooLarge
from service.images.fetching import ImageFetcher
from service.model.arrays import STORED_FLOAT32, Pixels, Vectors
from service.model.manifest import ImageSection

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many of each may come in one request, and the size of the model's images, in pixels."""

    images: int
    texts: int
    image: ImageSection


@dataclass(frozen=True, slots=True)
class Inferred:
    """A request with its tensors read; empty where there is no such input.

    `images` may be one array, uint8 `[images, height, width, 3]`.
    """

    request: InferRequest
    images: Sequence[ImageSource] | Pixels
    texts: Sequence[str]


def read_infer(body: bytes, header_length: str | None, limits: Limits, fetcher: ImageFetcher | None = None) -> Inferred:
    """Read a request: JSON, and the binary tensors after it where `header_length` says how long the JSON is.

    With a `fetcher` an image may be a URL; it is still to be fetched then.

    Raises:
        MalformedRequest: lengths, shapes and data do not agree, or it is not JSON.
        FieldErrors: a field is missing, unknown or of the wrong type.
        PayloadTooLarge: more images or texts than the limits.
        InvalidImage: an image in JSON is not base64, or one is a URL and there is no fetcher.
    """
    end = _json_length(header_length, len(body))
    request = validate_fields(InferRequest, parse_json_object(body[:end], numbers=True))
    rest = memoryview(body)[end:]
    inputs: dict[str, Any] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise FieldErrors([(f"inputs[{index}]", f"is a second {tensor.name}")])
        count = _count(tensor, limits)
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise MalformedRequest(f"The input {tensor.name} must have either data or binary_data_size.")
        if size is None:
            assert tensor.data is not None  # noqa: S101 - checked above
            inputs[tensor.name] = _from_json(tensor, count, _flat(tensor.name, tensor.data, tensor.shape), fetcher)
            continue
        if size > len(rest):
            raise MalformedRequest(
                f"The input {tensor.name} has a binary_data_size of more than the {len(rest)} bytes that are left."
            )
        inputs[tensor.name] = _from_binary(tensor, count, rest[:size], fetcher)
        rest = rest[size:]
    if len(rest):
        raise MalformedRequest(f"{len(rest)} bytes follow the last input; none claims them.")
    return Inferred(request, inputs.get(IMAGE, ()), inputs.get(TEXT, ()))


def write_infer(answer: Mapping[str, Any], outputs: Sequence[tuple[str, Vectors, bool]]) -> tuple[bytes, int | None]:
    """Write an answer.

    Args:
        answer: its members but `outputs`.
        outputs: name, float32 of any shape, and whether its data follow the JSON.

    Returns:
        The body, and the length of the JSON in it where something follows that.
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
        raise MalformedRequest("Inference-Header-Content-Length is more than the body has.")
    return length


def _count(tensor: InputTensor, limits: Limits) -> int:
    """How many images or texts the tensor says that it has: checked against the limits."""
    count, *inner = tensor.shape
    if tensor.datatype == "UINT8":
        wanted = [limits.image.height, limits.image.width, 3]
        if tensor.name != IMAGE or inner != wanted:
            raise MalformedRequest(f"A tensor of UINT8 must be image, of the shape [n, {', '.join(map(str, wanted))}].")
    elif inner not in ([], [1]):
        raise MalformedRequest(f"The input {tensor.name} must have the shape [n] or [n, 1] with the datatype BYTES.")
    limit, things = (limits.images, "images") if tensor.name == IMAGE else (limits.texts, "texts")
    if count > limit:
        raise PayloadTooLarge(f"The request has more {things} than may be sent at once here, {limit}.")
    return count


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Data that are nested as `shape` has it, or flat already."""
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
            pixels = bytes(flat)
        except (TypeError, ValueError) as exc:
            raise MalformedRequest("The data of UINT8 must be whole numbers from 0 to 255.") from exc
        return _pixels(tensor, pixels)
    if not all(isinstance(each, str) for each in flat):
        raise MalformedRequest(f"The data of the input {tensor.name} must be strings.")
    if tensor.name == TEXT:
        return flat
    return _sources([partial(image_source, flat[index], fetcher) for index in range(count)])


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
        return _sources([partial(encoded_or_url, element, fetcher) for element in elements])
    try:
        return [element.decode("utf-8") for element in elements]
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The elements of the input text must be in UTF-8.") from exc


def _sources(images: Sequence[Callable[[], ImageSource]]) -> list[ImageSource]:
    """What each gives. Raises InvalidImage with the number of the first that cannot be used."""
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
    return MalformedRequest(f"The input {name} does not have as many elements as its shape says.")
