"""The answers and errors of the protocols that are spoken for existing clients, as the OpenAPI document shows them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenAIErrorDetail(_Answer):
    """What is wrong, in OpenAI's words."""

    message: str
    type: Annotated[str, Field(examples=["invalid_request_error", "rate_limit_error", "server_error"])]
    param: Annotated[str | None, Field(description="The field at fault, where it is known.", examples=["input[3]"])]
    code: Annotated[str, Field(examples=["model_not_found"], description="Never changes.")]


class OpenAIError(_Answer):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetail


class PlainError(_Answer):
    """An error in the form of Hugging Face and of the Open Inference Protocol."""

    error: str


class EmbeddingOut(_Answer):
    """A vector of unit length: a list of numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(_Answer):
    """Tokens of the texts; images have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(_Answer):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingsUsage


class LabelScore(_Answer):
    """A label as the client spelled it, and its score."""

    label: str
    score: float
