"""Chooses the layout of a folder or a repository that is read, and its files, before the weights are there.

Configurations decide, not names alone: a ``config.json`` may be a stub beside open_clip's files. Each step asks for the
files that it reads, the smallest first, so a refusal costs a few kilobytes of a download, and no torch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from model_export.checkpoints import hugging_face_config, open_clip_config, text_model
from model_export.checkpoints.description import Description, disagreement
from model_export.checkpoints.file_choice import (
    CONFIGURATIONS,
    FULL_PRECISION,
    Form,
    choose_onnx,
    companions,
    has_onnx_encoder,
    loose_weights,
    weight_forms,
)
from model_export.checkpoints.layouts import HF_CONFIG, ONNX_FOLDER, RECIPE, RUN_WEIGHTS, unknown_layout
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.sentence_transformers import MODULES, Modules, read_modules
from model_export.checkpoints.text_model import TextModel
from model_export.errors import IncompleteError, SourceError
from model_export.families.published import refusal
from model_export.families.sentence_transformers.config import read_text_config
from model_export.files import read_object

Bring: TypeAlias = Callable[[Iterable[str]], Path]
"""Brings files of a source onto this machine, and returns the source's folder there."""

Graphs: TypeAlias = Literal["no", "without weights", "instead of weights"]
"""When ONNX encoders are chosen."""

T = TypeVar("T")

_IMMICH: Final = frozenset({"visual/model.onnx", "textual/model.onnx"})


@dataclass(frozen=True)
class Choice:
    """The files of a source to read.

    Attributes:
        files: all that the reader needs, relative to the source's folder; weights come last, so that a folder with
            complete weights has every other file too.
        description: what the files beside the weights say; None for training runs and ONNX graphs.
        passed_over: why another layout of the same folder is not read.
        text_model: what a text model says that needs the image tower of another source; else None.
    """

    layout: Literal["training_run", "hugging_face", "open_clip", "sentence_transformers", "onnx"]
    files: tuple[str, ...]
    description: Description | None = None
    passed_over: tuple[str, ...] = ()
    text_model: TextModel | None = None


@dataclass(frozen=True)
class _Source:
    """The files of a source; ``names`` and ``bring`` are relative to the folder of its model."""

    where: str
    names: frozenset[str]
    bring: Bring
    options: SourceOptions


def choose_of_folder(folder: Path, options: SourceOptions, *, graphs: Graphs = "no") -> Choice:
    """Choose the layout of a folder on this machine; arguments, result and errors as of `choose`."""
    return choose(names_in(folder), str(folder), lambda _: folder, options, graphs=graphs)


def names_in(folder: Path) -> frozenset[str]:
    """Return the names that readers look for: of the files in a folder, in ``onnx``, and where modules.json points."""
    parts = [folder, *(folder / name for name in _inner_folders(folder))]
    return frozenset(file.relative_to(folder).as_posix() for part in parts for file in part.glob("*") if file.is_file())


def choose(
    names: frozenset[str],
    where: str,
    bring: Bring,
    options: SourceOptions,
    *,
    graphs: Graphs = "no",
    variant: str = FULL_PRECISION,
) -> Choice:
    """Choose a layout, check what its files say, and return the files to read.

    Args:
        names: every file, relative to the source's folder.
        where: names the source in messages, instead of a folder in a cache.
        variant: of ONNX encoders.

    Raises:
        IncompleteError: no layout has all of its files.
        SourceError: no layout describes a model that is read here, or two layouts describe different models.
    """
    folder = str(bring([]))
    try:
        choice = _choose(_Source(where, names, bring, options), graphs, variant)
    except SourceError as exc:
        reason = refusal(options.source_id or where)
        known = f"; {reason}" if reason is not None else ""
        raise type(exc)(str(exc).replace(folder, where) + known) from exc
    if options.keep_aspect and (choice.description is None or choice.description.image.resize != "aspect"):
        raise SourceError(f"{where}: has no preprocessing that keeps the aspect; leave --keep-aspect out")
    return replace(choice, passed_over=tuple(reason.replace(folder, where) for reason in choice.passed_over))


def _choose(source: _Source, graphs: Graphs, variant: str) -> Choice:
    names, options = source.names, source.options
    if graphs == "instead of weights":
        return _onnx(source, variant)
    if RECIPE in names:
        return Choice("training_run", (*companions(names), *companions(names, [RUN_WEIGHTS[options.weights]])))
    modules = read_modules(source.bring([MODULES]) / MODULES) if MODULES in names else Modules("")
    if modules.text is not None:
        return _text_model(source, modules)
    inner = modules.model
    model = _within(source, inner) if inner else source
    forms = [form for form in weight_forms(model.names) if options.layout in {None, form.layout}]
    if not forms and options.layout is None and graphs == "without weights" and has_onnx_encoder(names):
        return _onnx(source, variant)
    if not forms:
        raise _no_form(model)
    choice = _of_forms(model, forms)
    if not inner:
        return choice
    return replace(choice, files=(*companions(names), *(f"{inner}/{name}" for name in choice.files)))


def _inner_folders(folder: Path) -> Iterator[str]:
    yield from (ONNX_FOLDER, "visual", "textual")
    if (folder / MODULES).is_file():
        with suppress(SourceError):  # the choice reports it
            yield from read_modules(folder / MODULES).folders


def _text_model(source: _Source, modules: Modules) -> Choice:
    small = text_model.configurations(source.names, modules)
    folder = source.bring(small)
    pooling, dense = modules.text or ("", "")
    read_text_config(folder / modules.model, folder / pooling, folder / dense)  # before the tokenizer is downloaded
    small = (*companions(source.names, ("README.md",)), *small, *text_model.tokenizer_files(source.names, modules))
    said = text_model.describe(source.bring(small), modules, source.options, source.where)
    files = (*small, *text_model.weights(source.names, modules, source.where))
    return Choice("sentence_transformers", tuple(dict.fromkeys(files)), text_model=said)


def _within(source: _Source, inner: str) -> _Source:
    before = f"{inner}/"
    names = frozenset(name.removeprefix(before) for name in source.names if name.startswith(before))

    def bring(wanted: Iterable[str]) -> Path:
        return source.bring([before + name for name in wanted]) / inner

    return _Source(f"{source.where}/{inner}", names, bring, source.options)


def _onnx(source: _Source, variant: str) -> Choice:
    files = choose_onnx(source.names, variant, source.where)
    config = source.bring(companions(source.names, CONFIGURATIONS)) / HF_CONFIG
    hugging_face_config.check_graphs(read_object(config, hint="it states the kind of model"), config)
    return Choice("onnx", (*companions(source.names), *files))


def _no_form(source: _Source) -> SourceError:
    if source.names >= _IMMICH:
        return IncompleteError(
            f"{source.where}: holds graphs in Immich's layout ({', '.join(sorted(_IMMICH))}), which take a batch of "
            "one picture; export the weights that they were made from, such as openai/clip-vit-base-patch32"
        )
    if source.options.layout is None:
        return unknown_layout(source.where, loose_weights(source.names))
    return IncompleteError(
        f"{source.where}: has no weights with a configuration in the layout {source.options.layout}; leave --layout out"
    )


def _of_forms(source: _Source, forms: Sequence[Form]) -> Choice:
    refused: list[str] = []
    folder = source.bring(companions(source.names, CONFIGURATIONS))
    kinds = [form for form, _ in _succeeding(lambda form: _check_kind(form, folder, source.options), forms, refused)]
    if not kinds:
        raise SourceError("; ".join(refused))
    folder = source.bring(companions(source.names))
    read = _succeeding(lambda form: _describe(form, folder, source.options), kinds, refused)
    if not read:
        raise SourceError(refused[-len(kinds)])  # of the best form
    form, said = read[0]
    for _, other in read[1:]:
        if (difference := disagreement(said, other)) is not None:
            raise SourceError(
                f"{source.where}: holds two layouts that disagree: {difference}; "
                "choose with --layout hugging_face or --layout open_clip"
            )
    if form.lacking:
        raise IncompleteError(f"{source.where}: lacks {form.lacking[0]}, a part of the weights")
    return Choice(form.layout, (*companions(source.names), *form.files), said, tuple(refused))


def _succeeding(step: Callable[[Form], T], forms: Iterable[Form], refused: list[str]) -> list[tuple[Form, T]]:
    """Return the forms for which a step succeeds, with its result; messages of SourceErrors go to ``refused``."""
    done = []
    for form in forms:
        try:
            done.append((form, step(form)))
        except SourceError as exc:
            refused.append(str(exc))
    return done


def _check_kind(form: Form, folder: Path, options: SourceOptions) -> None:
    if form.layout == "hugging_face":
        hugging_face_config.check_kind(folder, options)
    else:
        open_clip_config.check_kind(folder, options)


def _describe(form: Form, folder: Path, options: SourceOptions) -> Description:
    if form.layout == "hugging_face":
        return hugging_face_config.describe(folder, options)
    return open_clip_config.describe(folder / form.files[0], options)
