"""Run an evaluation: check everything first, then encode texts, then images."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from model_export.errors import DataError
from model_export.evaluation.class_files import ClassFile, read_class_file
from model_export.evaluation.class_matrices import check_prompts, class_matrices
from model_export.evaluation.classes import find_classes
from model_export.evaluation.data.samples import choose_rows
from model_export.evaluation.data.sources import SampleColumns, open_data
from model_export.evaluation.figures import Figures, figures
from model_export.evaluation.measure import Broken, Measurement
from model_export.evaluation.open_clip_metadata import OPENAI_IMAGENET, imagenet_class_names, metadata_file
from model_export.evaluation.templates import choose_templates
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import load_bundle
from service.model.manifest import Manifest
from service.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """The options of ``anyclass-export evaluate``."""

    bundle: Path
    data: tuple[str, ...]
    templates: tuple[str, ...] = ()
    classes: str | None = None
    provider: str = "cpu"
    every: int = 1
    limit: int | None = None
    batch_size: int = 64
    threads: int | None = None
    columns: SampleColumns = field(default_factory=SampleColumns)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        template_sets: in the requested order.
        figures: for each template set, over the readable images.
        broken: the first hundred unreadable images.
        broken_count: number of all unreadable images.
        seconds: time for decoding and encoding images.
    """

    request: Request
    manifest: Manifest
    provider: str
    classes: tuple[str, ...]
    template_sets: dict[str, tuple[str, ...]]
    figures: dict[str, Figures]
    broken: tuple[Broken, ...]
    broken_count: int
    remarks: tuple[str, ...]
    seconds: float

    @property
    def images(self) -> int:
        """Return the number of readable images."""
        return next(iter(self.figures.values())).images


class ProgressDisplay(Protocol):
    """Shows the progress of an evaluation."""

    def begin(self, what: str, total: int) -> Callable[[int], None]:
        """Start a bar; return the function that advances it."""


def evaluate(request: Request, progress: ProgressDisplay) -> Evaluation:
    """Measure a bundle's zero-shot accuracy under each template set; encode every image once.

    Raises:
        DataError: data, classes or templates are invalid, or no image can be read.
        BundleError: the bundle is damaged.
        ProviderUnavailable, ConfigurationError: the provider is missing, or does not fit the bundle.
        InferenceFailed: the model failed.
    """
    bundle = load_bundle(request.bundle)
    provider = resolve(request.provider, compute="fp32")  # measures the bundle, not the loss from bf16
    sets = choose_templates(request.templates, bundle.templates)
    given = None if request.classes is None else _given_classes(request.classes)
    sources = open_data(request.data, request.columns)
    classes = find_classes(sources, given)
    chosen = choose_rows([len(source.labels) for source in sources], every=request.every, limit=request.limit)
    total = sum(map(len, chosen))
    if not total:
        raise DataError(f"--every {request.every} leaves no row, because the data have fewer; choose a smaller number")
    names = {name: index for index, name in enumerate(dict.fromkeys(classes.names))}
    tokenizer = Tokenizer.from_bundle(bundle)
    check_prompts(tokenizer, list(names), sets)
    with closing(OnnxEngine.load(bundle, provider, threads=request.threads)) as engine:
        advance = progress.begin("class vectors", len(names))
        matrices = class_matrices(engine, tokenizer, list(names), sets, batch_size=request.batch_size, advance=advance)
        columns = [names[name] for name in classes.names]
        measurement = Measurement(engine, bundle.manifest.image, matrices, columns, request.batch_size)
        started = time.monotonic()
        measurement.run(sources, chosen, classes.targets, progress.begin("images", total))
        seconds = time.monotonic() - started
    return Evaluation(
        request=request,
        manifest=bundle.manifest,
        provider=provider.name,
        classes=classes.names,
        template_sets=sets,
        figures={title: figures(given, len(classes.names)) for title, given in measurement.answers().items()},
        broken=tuple(measurement.broken),
        broken_count=measurement.broken_count,
        remarks=classes.remarks,
        seconds=seconds,
    )


def _given_classes(given: str) -> ClassFile:
    if given == OPENAI_IMAGENET and not Path(given).exists():
        path = metadata_file()
        return ClassFile(str(path), imagenet_class_names(path))
    return read_class_file(Path(given))
