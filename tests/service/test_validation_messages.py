"""Messages for invalid values say what the value must be, without the jargon of libraries."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.open_inference.schemas import InferRequest
from service.api.openai.schemas import BatchRequest
from service.api.problems.table import FieldErrors
from service.api.request.validation import validate_fields
from service.settings import Settings, problems, variable

JARGON = re.compile(r"input|value error|should|valid|parse|pattern|\^|after ", re.IGNORECASE)


class Everything(BaseModel):
    """A field of each kind that requests and settings have."""

    model_config = ConfigDict(extra="forbid")

    needed: Literal[1] = 1
    text: Annotated[str, Field(min_length=2, max_length=3)] = "ab"
    entries: Annotated[list[int], Field(min_length=2, max_length=3)] = [1, 2]
    pairs: dict[str, int] = {}
    flag: bool = False
    whole: Annotated[int, Field(ge=1, le=9)] = 1
    number: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    choice: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("more", 1, "is not known here"),
        ("text", 1, "must be a string"),
        ("text", "a", "must have at least 2 characters"),
        ("text", "abcd", "must have at most 3 characters"),
        ("entries", "x", "must be a list"),
        ("entries", [1], "must have at least 2 entries"),
        ("entries", [1, 2, 3, 4], "must have at most 3 entries"),
        ("pairs", [], "must be an object"),
        ("flag", "perhaps", "must be true or false"),
        ("whole", "abc", "must be a whole number"),
        ("whole", 1.5, "must be a whole number"),
        ("whole", 0, "must be at least 1"),
        ("whole", 10, "must be at most 9"),
        ("number", "abc", "must be a number"),
        ("number", float("nan"), "must be a finite number"),
        ("number", 0, "must be greater than 0.0"),
        ("number", 1, "must be less than 1.0"),
        ("choice", "c", "must be 'a' or 'b'"),
    ],
)
def test_each_fault_has_words(name: str, value: Any, words: str) -> None:
    """The message says what the value must be."""
    with pytest.raises(FieldErrors) as caught:
        validate_fields(Everything, {name: value})
    assert ((name, words),) == caught.value.fields


@pytest.mark.parametrize(
    ("model", "fields", "fault"),
    [
        (
            BatchRequest,
            {"input_file_id": "file-1", "endpoint": "/v1/classify", "completion_window": "7d"},
            ("completion_window", "must be whole hours from 1h to 168h, such as 24h"),
        ),
        (BatchRequest, {"endpoint": "/v1/classify"}, ("input_file_id", "is missing")),
        (InferRequest, {"inputs": []}, ("inputs", "must not be empty")),
    ],
)
def test_requests(model: type[BaseModel], fields: dict[str, Any], fault: tuple[str, str]) -> None:
    """Fields of other protocols have messages too."""
    with pytest.raises(FieldErrors) as caught:
        validate_fields(model, fields)
    assert (fault,) == caught.value.fields


@pytest.mark.parametrize("window", ["1h", "9h", "24h", "99h", "159h", "168h"])
def test_windows_of_whole_hours(window: str) -> None:
    """From one hour to a week."""
    asked = BatchRequest(input_file_id="file-1", endpoint="/v1/classify", completion_window=window)
    assert window == asked.completion_window


def test_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each invalid setting gives its variable and a plain message."""
    for name in Settings.model_fields:
        monkeypatch.setenv(variable(name), "-5://nonsense")
    with pytest.raises(ValidationError) as caught:
        Settings()
    lines = problems(caught.value)
    assert "ANYCLASS_PORT: must be a whole number" in lines
    assert "ANYCLASS_REDIS_URL: must start with one of redis://, rediss://, unix://" in lines
    assert "ANYCLASS_PROVIDER: must be 'auto', 'cpu', 'cuda', 'tensorrt' or 'openvino'" in lines
    assert "ANYCLASS_ALLOW_IMAGE_URLS: must be true or false" in lines
    assert [] == [line for line in lines if JARGON.search(line.partition(": ")[2]) or "nonsense" in line]
