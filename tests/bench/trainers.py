"""The two trainers that are compared, each as processes that can be frozen while the other is measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.environments import Environment, Unavailable
from tests.bench.places import LOGS, MODELS, WORK
from tests.bench.server import cpu_s
from tests.support.places import ROOT

OURS, THEIRS = "anyclass", "open_clip"
ENVIRONMENT: Final = Environment(
    "open-clip", (("torch==2.13.0", "torchvision==0.28.0", "open_clip_torch[training]==3.3.0"),)
)
SHAPES: Final[Mapping[str, dict[str, Any]]] = {
    "ViT-B-32": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12},
    },
    # So small that decoding and resizing take a third of the time.
    "small": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 224, "layers": 4, "width": 192, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49_408, "width": 192, "heads": 3, "layers": 2},
    },
}
"""`model_cfg` of open_clip, which both trainers read."""

_PROGRAM: Final = ROOT / "tests" / "bench" / "peer_trainers" / "open_clip_cpu.py"
_LR, _WARMUP, _DECAY, _BETAS, _EPS = 5e-4, 2_000, 0.2, (0.9, 0.98), 1e-6
_ENDLESS: Final = 10_000_000
_POLL_S: Final = 0.005
_PATIENCE_S: Final = 600.0
_LAST_CHARS: Final = 600


@dataclass(frozen=True)
class Case:
    """What both trainers do.

    Attributes:
        model: a name of `SHAPES`.
        batch: pairs of a step, of all processes together.
        processes: that share a batch.
        threads: of all processes together.
    """

    model: str
    batch: int
    processes: int
    threads: int

    @property
    def name(self) -> str:
        """Return a name for files and tables."""
        return f"{self.model}-{self.processes}"

    @property
    def loading(self) -> int:
        """Return the loading processes of each training process."""
        return max(1, self.threads // self.processes)

    @property
    def environment(self) -> dict[str, str]:
        """Return variables of the environment: each process computes with its share of the threads."""
        return {"OMP_NUM_THREADS": str(max(1, self.threads // self.processes))}


class Training:
    """A trainer at work. A line of its log that holds `mark` is a step.

    Attributes:
        name: of the trainer.
    """

    def __init__(self, name: str, command: Sequence[str], case: Case, steps: Path, mark: str) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name, self._steps, self._mark = name, steps, mark
        self._log = LOGS / f"train-{case.name}-{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **case.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def steps(self) -> int:
        """Return the number of steps that are done."""
        try:
            return self._steps.read_text(encoding="utf-8").count(self._mark)
        except FileNotFoundError:
            return 0

    def wait(self, steps: int) -> float:
        """Wait for a number of steps; return the moment. Raises Unavailable if it ends, or takes too long."""
        until = time.monotonic() + _PATIENCE_S
        while self.steps() < steps:
            if self._process.poll() is not None or time.monotonic() > until:
                said = " ".join(self._log.read_text("utf-8", errors="replace")[-_LAST_CHARS:].split())
                raise Unavailable(f"{self.name} took no step {steps}: {said}")
            time.sleep(_POLL_S)
        return time.monotonic()

    def cpu_s(self) -> float:
        """Return the processor time of all its processes."""
        return sum(map(cpu_s, tree(self._process.pid)))

    def freeze(self) -> None:
        """Suspend all its processes."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume them."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self.freeze()  # so that nothing starts another process
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        for pid in tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def tree(leader: int) -> list[int]:
    """Return a process and its descendants: torchrun gives each rank a process group of its own."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found = [leader]
    for pid in found:
        found += children.get(pid, [])
    return found


def saved(model: str) -> Path:
    """Return a model with random weights in open_clip's layout; make it if missing."""
    folder = MODELS / f"{model}-open-clip"
    if not (folder / "open_clip_config.json").exists():
        MODELS.mkdir(parents=True, exist_ok=True)
        shape = MODELS / f"{model}.json"
        shape.write_text(json.dumps(SHAPES[model]))
        command = [str(ENVIRONMENT.make()), str(_PROGRAM), "save", str(shape), str(folder)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder


def start_ours(case: Case, data: Path) -> Training:
    """Start our trainer."""
    recipe = WORK / f"train-{case.name}.toml"
    recipe.write_text(recipe_of(case, data))
    run = WORK / "runs" / case.name
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "model_export", "train", str(recipe), "--from", str(saved(case.model))]
    command += ["--out", str(run), "--device", "cpu"]
    if case.processes > 1:
        command += ["--processes", str(case.processes)]
    return Training(OURS, command, case, run / "metrics.jsonl", '"loss"')


def recipe_of(case: Case, data: Path) -> str:
    """Return the recipe of our trainer."""
    return f"""
name = "bench"
log_every = 1
checkpoint_every = {_ENDLESS}
[data]
files = [{json.dumps(str(data))}]
validation_every = 0
workers = {case.loading}
[augment]
crop_area = [0.9, 1.0]
[captions]
templates = ["{{}}"]
class_name_share = 0
[optim]
epochs = {_ENDLESS}
batch_size = {case.batch}
lr = {_LR}
warmup_steps = {_WARMUP}
weight_decay = {_DECAY}
betas = {list(_BETAS)}
eps = {_EPS}
precision = "bf16"
"""


def start_theirs(case: Case, data: Path) -> Training:
    """Start open_clip's trainer."""
    logs = WORK / "open-clip"
    shutil.rmtree(logs / case.name, ignore_errors=True)
    command = [str(ENVIRONMENT.make())]
    if case.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    arguments = [*arguments_of(case, data), "--logs", str(logs), "--name", case.name]
    arguments += ["--model", f"local-dir:{saved(case.model)}"]
    command += [str(_PROGRAM), "train", json.dumps(arguments)]
    return Training(THEIRS, command, case, logs / case.name / "out.log", "Train Epoch:")


def arguments_of(case: Case, data: Path) -> list[str]:
    """Return open_clip's arguments for the recipe of `recipe_of`; its batch size counts one process."""
    last = max(data.glob("*.tar")).stem
    options: dict[str, object] = {
        "train-data": f"{data}/{{000..{last}}}.tar",
        "dataset-type": "webdataset",
        "train-num-samples": _ENDLESS,
        "batch-size": case.batch // case.processes,
        "workers": case.loading,
        "precision": "amp_bf16",
        "device": "cpu",
        "epochs": 1,
        "lr": _LR,
        "warmup": _WARMUP,
        "wd": _DECAY,
        "beta1": _BETAS[0],
        "beta2": _BETAS[1],
        "eps": _EPS,
        "log-every-n-steps": 1,
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [*given, "--local-loss", "--gather-with-grad"]
