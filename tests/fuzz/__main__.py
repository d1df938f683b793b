"""The long run: `make fuzz CASES=50000`. Exits with 1 after a failed check or an error of the service."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import Fuzzed, fuzzed_server, run

_EXAMPLES_A_ROUND = 200
"""Most random requests of each operation; boundary values and sequences add some 2,000 a round."""
_OPERATIONS = 33  # about


def main() -> int:
    """Run rounds with different requests until enough were sent."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=50_000, help="requests to send at least")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further round after this")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anyclass-fuzz-") as folder:
        return _campaign(Path(folder), asked)


def _campaign(folder: Path, asked: argparse.Namespace) -> int:
    began, cases, failed, seed = time.monotonic(), 0, 0, asked.seed
    with fuzzed_server(folder) as fuzzed:
        at_first = _resident_mib(fuzzed)
        while cases < asked.cases and time.monotonic() - began < asked.minutes * 60:
            wanted = (asked.cases - cases) // _OPERATIONS
            outcome = run(fuzzed, folder, max_examples=min(max(wanted, 1), _EXAMPLES_A_ROUND), seed=seed)
            cases += outcome.cases
            if not outcome.passed:
                failed += 1
                _say(outcome.output)
            seconds = time.monotonic() - began
            _say(f"seed {seed}: {cases} of {asked.cases} requests in {seconds:.0f} s, {failed} rounds failed")
            seed += 1
        errors = fuzzed.errors()
        for line in errors:
            _say(str(line))
        _say(
            f"{cases} requests, {failed} rounds failed, {len(errors)} lines of errors in the log; resident memory "
            f"{at_first:.0f} MiB before, {_resident_mib(fuzzed):.0f} MiB after"
        )
    return 1 if failed or errors else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _resident_mib(fuzzed: Fuzzed) -> float:
    status = Path(f"/proc/{fuzzed.server.process.pid}/status").read_text("utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
