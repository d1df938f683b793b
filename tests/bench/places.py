"""Folders of the benchmarks' files: under build/, which git ignores, or in BENCH_WORK."""

import os
from pathlib import Path
from typing import Final

from tests.support.places import ROOT

WORK: Final = Path(os.environ.get("BENCH_WORK") or ROOT / "build" / "bench")
ENVIRONMENTS: Final = WORK / "envs"
MODELS: Final = WORK / "models"
REQUESTS: Final = WORK / "requests"
LOGS: Final = WORK / "logs"
RESULTS: Final = WORK / "results.json"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
IMAGES: Final = ROOT / "docs" / "images"
EXAMPLES: Final = ROOT / "examples"
