"""Output of batches: one line, a table, or every field."""

import sys
from typing import TYPE_CHECKING, Any, Final

from service.cli.reporting import print_json

if TYPE_CHECKING:
    from service.cli.remote.polling import PollStatus

ENDED: Final = ("failed", "completed", "expired", "cancelled")
MEMBERS: Final = ("id", "status", "endpoint", "errors", "output_file_id", "error_file_id", "request_counts", "metadata")
"""Fields that an answer must have to be a batch."""


def poll_status(batch: dict[str, Any]) -> "PollStatus":
    """Return the progress of a batch."""
    from service.cli.remote.polling import PollStatus

    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    known = counts["total"] or None
    return PollStatus(batch["status"] in ENDED, batch["status"].replace("_", " "), done, known, counts["failed"])


def print_batch(batch: dict[str, Any], *, as_json: bool, short: bool = False) -> None:
    """Print a batch: as JSON, in one line (`short`), or field by field."""
    from service.cli.console.rendering import local_time, print_fields

    if as_json:
        print_json(batch)
        return
    if short:
        sys.stdout.write(_line(batch))
        return
    counts = batch["request_counts"]
    fields = {
        "id": batch["id"],
        "status": batch["status"],
        "endpoint": batch["endpoint"],
        "lines": f"{counts['total']:,}",
        "answered": f"{counts['completed']:,}",
        "failed": f"{counts['failed']:,}",
        "created": local_time(batch["created_at"]),
        "expires": local_time(batch["expires_at"]),
        "input": batch["input_file_id"],
        "output": batch["output_file_id"] or "",
        "errors": batch["error_file_id"] or "",
    }
    fields |= {f"metadata {key}": value for key, value in (batch["metadata"] or {}).items()}
    faults = (batch["errors"] or {"data": []})["data"]
    if faults:
        fields["faults"] = "\n".join(
            fault["message"] if fault["line"] is None else f"line {fault['line']}: {fault['message']}"
            for fault in faults
        )
    print_fields({name: value for name, value in fields.items() if value})


def _line(batch: dict[str, Any]) -> str:
    """Return a line that begins with the id: a script can cut it at the first space."""
    counts = batch["request_counts"]
    state = batch["status"].replace("_", " ")
    how = (
        f"{counts['completed']:,} of {counts['total']:,} answered, {counts['failed']:,} failed"
        if counts["total"]
        else ""
    )
    return f"{batch['id']}  {state}{', ' if how else ''}{how}\n"


def print_batches(found: list[dict[str, Any]]) -> None:
    """Print batches as a table."""
    from service.cli.console.rendering import local_time, print_table

    if not found:
        sys.stderr.write("No batches. Create one: anyclass batches create FILE\n")
        return
    rows = [
        (
            each["id"],
            each["status"],
            *(f"{each['request_counts'][count]:,}" for count in ("total", "completed", "failed")),
            each["endpoint"],
            local_time(each["created_at"]),
        )
        for each in found
    ]
    print_table(("BATCH", "STATUS", "LINES", "ANSWERED", "FAILED", "ENDPOINT", "CREATED"), rows, right=(2, 3, 4))
