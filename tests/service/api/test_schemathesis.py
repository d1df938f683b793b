"""The service and its OpenAPI document, held together by requests that are made up from the document."""

from pathlib import Path

import httpx
import pytest

from service.api.documentation.document import operations_of
from tests.fuzz.campaign import fuzzed_server, run

EXAMPLES = 8


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_answer_is_one_that_is_documented(tmp_path: Path) -> None:
    """Status, media type, headers and body, for right and wrong requests; wrong ones are refused, none is a 5xx.

    The requests are the same on every run. `make fuzz` sends others, and many more.
    """
    with fuzzed_server(tmp_path, job_workers=0) as fuzzed:
        document = httpx.get(f"{fuzzed.server.url}/openapi.json", timeout=60).json()
        outcome = run(fuzzed, tmp_path, max_examples=EXAMPLES)
        errors = fuzzed.errors()
    assert outcome.passed, outcome.output
    assert [] == errors
    every = {f"{method.upper()} {path}" for path, method, _ in operations_of(document)}
    assert (len(every), len(every)) == outcome.operations
    assert len(every) * EXAMPLES < outcome.cases
    # None was only ever refused.
    assert set() == every - outcome.accepted
