"""Run schemathesis against a running service, and collect its results."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.api.documentation.examples import FILE_LINES
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

HERE = Path(__file__).parent
KEY = "a-key-for-the-fuzzing-only"
MODEL = "demo"
KNOWN = "ANYCLASS_FUZZ_KNOWN"
"""Environment variable that passes known values to the hooks, as JSON."""
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run.

    Attributes:
        cases: number of generated requests.
        operations: number of operations in the document, and of tested ones.
        passed: whether every check passed.
        output: the output of schemathesis.
        accepted: operations of which at least one generated request succeeded.
    """

    cases: int
    operations: tuple[int, int]
    passed: bool
    output: str
    accepted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A running service.

    Attributes:
        server: the service.
        known: existing values by parameter: the id of a file and of a batch, the version of the model.
    """

    server: HttpServer
    known: Mapping[str, str]

    def errors(self) -> list[dict[str, Any]]:
        """Return the lines of its log about answers of 5xx or errors."""
        self.server.settle_log()
        return [
            line
            for line in self.server.logs()
            if line["level"] == "error" or (line["event"] == "request" and line["status"] >= _SERVER_ERROR)
        ]


@contextmanager
def fuzzed_server(folder: Path, *, job_workers: int = 2) -> Iterator[Fuzzed]:
    """Run a service with API keys and a large quota that holds a label set, files and a batch.

    Without `job_workers` the batch never ends, so that it can be cancelled.
    """
    bundle = write_tiny_bundle(folder / "bundle", name=MODEL, aliases=("acme/demo",))
    env = {
        "ANYCLASS_STATE_URL": (folder / "state").as_uri(),
        "ANYCLASS_API_KEYS": KEY,
        "ANYCLASS_JOB_WORKERS": str(job_workers),
        # A full store is a documented state, and not the subject of this test.
        "ANYCLASS_MAX_LABEL_SETS": "1000000",
        "ANYCLASS_MAX_ACTIVE_JOBS": "1000000",
        "ANYCLASS_RATE_LIMIT_PER_S": "1000000",
    }
    with http_server(bundle, folder, env=env) as server:
        with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60) as client:
            known = _prepare(client)
        yield Fuzzed(server, known)


def _prepare(client: httpx.Client) -> dict[str, str]:
    def done(answer: httpx.Response) -> dict[str, Any]:
        body: dict[str, Any] = answer.raise_for_status().json()
        return body

    done(client.put("/v1/label-sets/animals", json={"labels": ["cat", "dog"]}))
    input_id, file_id = (
        done(client.post("/v1/files", files={"file": ("lines.jsonl", FILE_LINES)}, data={"purpose": "batch"}))["id"]
        for _ in range(2)
    )
    batch = {"input_file_id": input_id, "endpoint": "/v1/embeddings"}
    return {
        "input_file_id": input_id,
        "file_id": file_id,
        "batch_id": done(client.post("/v1/batches", json=batch))["id"],
        "version": done(client.get(f"/v2/models/{MODEL}"))["versions"][0],
    }


def run(fuzzed: Fuzzed, folder: Path, *, max_examples: int, seed: int | None = None) -> Outcome:
    """Send generated requests: examples, boundary values, random ones, and sequences.

    Args:
        fuzzed: the service.
        folder: folder of the reports.
        max_examples: random requests of each operation, in addition to boundary values.
        seed: selects other requests; None sends the same ones every time.
    """
    report = folder / f"report-{seed}.json"
    chosen = ["--generation-deterministic"] if seed is None else [f"--seed={seed}", "--generation-database=none"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"{fuzzed.server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", str(max_examples), *chosen, "--continue-on-failure"),
            *("--request-timeout", "60", "--report", "json", "--report-json-path", str(report)),
        ],
        env={
            # Coverage of schemathesis itself is not measured.
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "PYTHONPATH": str(HERE.parents[1]),
            KNOWN: json.dumps(fuzzed.known),
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    if not report.exists():
        return Outcome(0, (0, 0), passed=False, output=output, accepted=frozenset())
    said = json.loads(report.read_text("utf-8"))
    accepted = {
        operation
        for operation, phases in said["valid_rates"].items()
        if any(counts["accepted"] for counts in phases.values())
    }
    return Outcome(
        cases=said["test_cases"]["generated"],
        operations=(said["operations"]["total"], said["operations"]["tested"]),
        passed=done.returncode == 0,
        output=output,
        accepted=frozenset(accepted),
    )
