"""Write constraints.txt and constraints-gpu.txt: the versions pip resolves pyproject.toml to today.

Two files, because the GPU build of ONNX Runtime and PyTorch each name their own versions of the same NVIDIA
packages: pinned in one file, the two could not be installed with it.

Nothing is installed: pip only reports what it would choose. Versions are public ones (no "+cpu") and no index
is
named, so the files are the same whatever mirror they were made with.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = "cpu,convert,train,open-clip,evaluate,curate,scale,dev"
HEADER = "# Written by `make constraints`; not edited by hand.\n"

# torch's metadata pins these exactly, and only in its CUDA builds.
FROM_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def resolve(extras: str) -> dict[str, str]:
    """Return the packages that pip would install for the extras: normalised name → public version."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--dry-run", "--ignore-installed", "--report", str(report), f"{ROOT}[{extras}]"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        installs = json.loads(report.read_text())["install"]
    pins = {
        item["metadata"]["name"].lower().replace("_", "-").replace(".", "-"): item["metadata"]["version"]
        for item in installs
    }
    del pins["anyclass"]
    return {name: version.split("+")[0] for name, version in pins.items()}


def write(path: Path, pins: dict[str, str]) -> None:
    """Write the pins sorted, one a line."""
    path.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
    print(f"{path.name}: {len(pins)} packages")


def main() -> None:
    """Resolve both sets and write both files."""
    common = {name: v for name, v in resolve(EVERYTHING).items() if not FROM_TORCH.match(name)}
    gpu = {name: v for name, v in resolve("gpu").items() if name not in common}
    write(ROOT / "constraints.txt", common)
    write(ROOT / "constraints-gpu.txt", gpu)


if __name__ == "__main__":
    main()
