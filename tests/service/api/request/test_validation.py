import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import service.api
from service.api.huggingface.schemas import InputObject, Parameters, ZeroShotRequest
from service.api.native.label_set_schemas import DescribedLabel, LabelSetIn
from service.api.open_inference.schemas import (
    InferRequest,
    InputParameters,
    InputTensor,
    OutputParameters,
    RequestedOutput,
    RequestParameters,
)
from service.api.openai.embeddings import EmbeddingsRequest
from service.api.openai.schemas import BatchRequest
from service.api.problems.table import FieldErrors
from service.api.request.fields import Options
from service.api.request.validation import RequestModel, validate_fields

TENSOR: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
SMALLEST: dict[type[RequestModel], dict[str, Any]] = {
    BatchRequest: {"input_file_id": "file-1", "endpoint": "/v1/classify"},
    DescribedLabel: {"label": "cat", "descriptions": ["a cat"]},
    EmbeddingsRequest: {"input": "a"},
    InferRequest: {"inputs": [TENSOR]},
    InputObject: {"image": "AAAA"},
    InputParameters: {},
    InputTensor: TENSOR,
    LabelSetIn: {"labels": ["cat"]},
    Options: {"labels": ["cat"]},
    OutputParameters: {},
    Parameters: {},
    RequestParameters: {},
    RequestedOutput: {"name": "scores"},
    ZeroShotRequest: {"inputs": "AAAA"},
}
"""Every schema of a request, with the fewest fields it takes."""

OPTIONAL = [
    (model, field.alias or name)
    for model, fields in SMALLEST.items()
    for name, field in model.model_fields.items()
    if not field.is_required() and name not in fields
]
"""Every optional field by the name that clients send."""


def every_model(base: type[RequestModel] = RequestModel) -> Iterator[type[RequestModel]]:
    """Yield the models of all requests, wherever they are defined."""
    for module in pkgutil.walk_packages(service.api.__path__, "service.api."):
        importlib.import_module(module.name)
    for model in base.__subclasses__():
        if model.__module__.startswith("service."):
            yield model
        yield from every_model(model)


def test_every_schema_of_a_request_is_tested_here() -> None:
    """A schema that is added has its fewest fields above."""
    assert set(SMALLEST) == set(every_model())


@pytest.mark.parametrize(("model", "name"), OPTIONAL)
def test_null_is_as_if_the_field_were_left_out(model: type[RequestModel], name: str) -> None:
    """Many clients send each field that they know; OpenAI's API takes null too."""
    without = validate_fields(model, SMALLEST[model])
    assert without == validate_fields(model, {**SMALLEST[model], name: None})


@pytest.mark.parametrize(("model", "name"), OPTIONAL)
def test_the_schema_says_that_null_is_taken(model: type[RequestModel], name: str) -> None:
    """A generated client that sends null keeps to the document."""
    assert {"type": "null"} in model.model_json_schema()["properties"][name]["anyOf"]


@pytest.mark.parametrize("model", SMALLEST)
def test_null_for_a_required_field_is_refused(model: type[RequestModel]) -> None:
    """Nothing stands for it."""
    for name, field in model.model_fields.items():
        if field.is_required() and model is not EmbeddingsRequest:
            with pytest.raises(FieldErrors, match=f"^{name}: "):
                validate_fields(model, {**SMALLEST[model], name: None})


def test_null_templates_go_with_a_label_set() -> None:
    """They are not given."""
    assert "animals" == validate_fields(Options, {"label_set": "animals", "labels": None, "templates": None}).label_set


@pytest.mark.parametrize(
    ("model", "changes", "path"),
    [
        (InferRequest, {"inputs": [{**TENSOR, "datatype": "FP32"}]}, "inputs[0].datatype"),
        (InferRequest, {"inputs": [{**TENSOR, "shape": [0]}]}, "inputs[0].shape[0]"),
        (InferRequest, {"inputs": [{"name": "text", "shape": [1]}]}, "inputs[0].datatype"),
        (InferRequest, {"inputs": [TENSOR], "outputs": [{"name": "scores", "x": 1}]}, "outputs[0].x"),
        (ZeroShotRequest, {"parameters": {"threshold": 0.5}}, "parameters.threshold"),
        (ZeroShotRequest, {"inputs": {"image": 1}}, "inputs.image"),
        (ZeroShotRequest, {"inputs": {"candidateLabels": "a"}}, "inputs.image"),
        (LabelSetIn, {"labels": ["a", {"label": "b", "descriptions": [1]}]}, "labels[1].descriptions[0]"),
        (LabelSetIn, {"labels": ["a", {"label": "b"}]}, "labels[1].descriptions"),
        (
            BatchRequest,
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
        ),
        (BatchRequest, {"metadata": {"key": 1}}, "metadata.key"),
        (Options, {"labels": ["a", 1]}, "labels[1]"),
        (Options, {"templates": 1}, "templates"),
    ],
)
def test_a_field_within_another_is_named_by_its_path(
    model: type[RequestModel], changes: dict[str, Any], path: str
) -> None:
    """Who reads `parameters: is not known here` takes `parameters` out."""
    with pytest.raises(FieldErrors) as caught:
        validate_fields(model, {**SMALLEST[model], **changes})
    assert path in [name for name, _ in caught.value.fields]


def test_the_message_names_every_fault() -> None:
    """Most protocols have no list of faulty fields in their errors."""
    with pytest.raises(FieldErrors) as caught:
        validate_fields(EmbeddingsRequest, {"inputs": "a", "dimensions": "512"})
    assert "input: is missing; dimensions: must be a whole number; inputs: is not known here" == caught.value.detail


def test_a_message_of_many_faults_is_short() -> None:
    """It counts those that it does not name."""
    faults = FieldErrors([(f"labels[{index}]", "must be a string") for index in range(12)])
    assert faults.detail.endswith("; labels[4]: must be a string; and 7 more")
    assert 12 == len(faults.fields)
