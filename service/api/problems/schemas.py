"""Schemas of errors, in each protocol's form."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AnswerModel(BaseModel):
    """Base of every answer: no fields beyond those declared."""

    model_config = ConfigDict(extra="forbid")


class FieldProblem(AnswerModel):
    """A faulty field."""

    field: Annotated[str, Field(examples=["labels[3]"])]
    detail: Annotated[str, Field(examples=["must be a string"])]


class Problem(AnswerModel):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:anyclass:problem:invalid-labels"], description="Never changes.")]
    title: str
    status: int
    detail: Annotated[str, Field(description="What is wrong with this request, and what to do.")]
    request_id: Annotated[str, Field(description="Also in the answer's X-Request-ID and in the log.")]
    errors: Annotated[list[FieldProblem] | None, Field(description="The faulty fields, if they are known.")] = None


class OpenAIErrorDetail(AnswerModel):
    """The error in OpenAI's terms."""

    message: str
    type: Annotated[str, Field(examples=["invalid_request_error", "rate_limit_error", "server_error"])]
    param: Annotated[str | None, Field(description="The faulty field, if it is known.", examples=["input[3]"])]
    code: Annotated[str, Field(examples=["model_not_found"], description="Never changes.")]


class OpenAIError(AnswerModel):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetail


class PlainError(AnswerModel):
    """An error in the form of Hugging Face and of the Open Inference Protocol."""

    error: str
