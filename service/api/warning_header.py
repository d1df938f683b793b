"""The `X-Anyclass-Warnings` header: the codes of an answer's warnings, on every protocol."""

from collections.abc import Sequence
from typing import Final

from service.model.answer_warnings import AnswerWarning, codes_of

HEADER: Final = "x-anyclass-warnings"


def warning_headers(warnings: Sequence[AnswerWarning]) -> dict[str, str]:
    """Return the header, or nothing without warnings."""
    return {HEADER: ", ".join(codes_of(warnings))} if warnings else {}
