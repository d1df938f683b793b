import importlib.util
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from filelock import FileLock

from model_export.families.open_clip_torch.package import import_torchvision
from tests.support.tiny_run import TOWERS, write_tiny_run

if TYPE_CHECKING:
    from model_export.bundles.verification import Report
    from model_export.graphs.graph_files import Graph
    from service.model.manifest import Agreement, Precision


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small gain nothing from threads, and on a busy machine they wait for each other for minutes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """Build the exporter's table of operators once, not in each export: it is the same and takes half a second."""
    export = torch.onnx.export

    def first(*arguments: Any, **options: Any) -> Any:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        build = cache(ONNXRegistry.from_torchlib)

        def built(opset_version: int) -> ONNXRegistry:
            table, mine = build(opset_version), ONNXRegistry()
            mine._opset_version = table.opset_version
            mine.functions = {name: list(translations) for name, translations in table.functions.items()}
            return mine

        patch.undo()
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(built))
        return export(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", first)  # imports the exporter only for tests that need it
        yield


if importlib.util.find_spec("torchvision") is not None:
    import_torchvision()  # transformers imports it where it is installed, and here it cannot be imported otherwise


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.reports: list[Report] = []
        self.agreements: list[Agreement] = []

    def wrote(self, graph: "Graph") -> None:
        """Remember a graph."""
        self.graphs.append(graph)

    def agreed(self, agreement: "Agreement") -> None:
        """Remember how a reduced precision answers."""
        self.agreements.append(agreement)

    def measured(self, report: "Report") -> None:
        """Remember a report."""
        self.reports.append(report)


@dataclass(frozen=True)
class Exported:
    """A training run, the bundle made from it, and what was heard on the way."""

    run: Path
    bundle: Path
    heard: Heard


@cache
def _export(root: Path, tower: str, precision: "Precision") -> Exported:
    from model_export.checkpoints.training_run import load_training_run
    from model_export.export.from_weights import export_model

    folder = root / f"{tower}-{precision}"
    run, bundle, listened = folder / "run", folder / "bundle", folder / "heard.pickle"
    with FileLock(f"{folder}.lock"):
        if listened.exists():  # exported by another process of pytest-xdist
            return Exported(run, bundle, pickle.loads(listened.read_bytes()))  # noqa: S301 - our own, of this run
        shutil.rmtree(folder, ignore_errors=True)  # of an export that failed
        heard = Heard()
        export_model(load_training_run(write_tiny_run(run, tower)), bundle, precision=precision, listener=heard)
        listened.write_bytes(pickle.dumps(heard))
    return Exported(run, bundle, heard)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the exports that tests share, also those of other processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", params=sorted(set(TOWERS) - {"whitening"}))
def exported(request: pytest.FixtureRequest, exports: Path) -> Exported:
    """Each kind of image tower, exported once; the demo's is in `exported_fp16`. Not to be written to."""
    return _export(exports, request.param, "fp32")


@pytest.fixture(scope="session")
def exported_vit(exports: Path) -> Exported:
    """A run with a vision transformer, exported as fp32. Not to be written to."""
    return _export(exports, "vit", "fp32")


@pytest.fixture(scope="session")
def exported_fp16(exports: Path) -> Exported:
    """One run, exported with its weights stored as fp16. Not to be written to."""
    return _export(exports, "whitening", "fp16-stored")
