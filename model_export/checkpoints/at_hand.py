"""Brings the files of a source that a user names onto this machine: a path, or a hub id that is fetched.

What the source's files say of its model is checked before the weights are downloaded, and before torch is imported.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from model_export.checkpoints.choice import Choice, Graphs, choose, choose_of_folder
from model_export.checkpoints.file_choice import FULL_PRECISION
from model_export.checkpoints.layouts import NOTHING_THERE
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.families.published import forbids_commerce
from model_export.families.sizes import published_hint
from model_export.hub.fetch import Bring, fetch, hub_id


def at_hand(
    source: str,
    options: SourceOptions,
    *,
    console: Console | None = None,
    graphs: Graphs = "no",
    variant: str = FULL_PRECISION,
    accept: Callable[[Choice], None] = lambda _choice: None,
) -> tuple[Path, SourceOptions]:
    """Return the path of a source's files, downloaded for a hub id, and its options with origin and licence.

    Args:
        source: a hub id, or a path.
        options: facts that the source's files may lack.
        console: shows what is downloaded, why one of two layouts is not read, and what is prepared otherwise.
        graphs: whether ONNX encoders are taken.
        variant: of the ONNX encoders.
        accept: raises a SourceError for a folder or hub id of a model that the caller cannot use; weights are not
            downloaded then.

    Raises:
        SourceError: the path does not exist, the source cannot be fetched, or its model is none that is read here.
    """
    hub = hub_id(source)
    if hub is None:
        path = Path(source).expanduser()
        if not path.exists():  # reported before torch is needed
            raise SourceError(f"{path}: {NOTHING_THERE}{published_hint(source)}")
        if path.is_dir() and graphs != "instead of weights":
            choice = choose_of_folder(path, options, graphs=graphs)
            accept(choice)
            _report(choice, console)
            _check_image_model(choice)
            _bring_image_model(choice, console)
        return path, options
    asked, choices = dataclasses.replace(options, source_id=hub.model_id), list[Choice]()

    def chosen(names: frozenset[str], where: str, bring: Bring) -> tuple[str, ...]:
        choice = choose(names, where, bring, asked, graphs=graphs, variant=variant)
        accept(choice)
        _report(choice, console)
        _check_image_model(choice)
        choices.append(choice)
        return choice.files

    fetched = fetch(hub.model_id, chosen, revision=hub.revision, console=console)
    _bring_image_model(choices[0], console)
    licence = options.licence or fetched.licence
    if console is not None and forbids_commerce(licence):
        line = f"note: the licence of {hub.model_id}, {licence}, forbids commercial use"
        console.print(escape(line), highlight=False, soft_wrap=True)
    return fetched.folder, dataclasses.replace(options, source_id=fetched.source_id, licence=licence)


def choice_of_hub(model_id: str, revision: str | None) -> Choice:
    """Choose the layout of a model on the hub; of its files only configurations and tokenizers are downloaded.

    Raises:
        HubUnreachableError: the hub cannot be reached, and the cache does not hold the model.
        SourceError: the model is none that is read here without options.
    """
    choices: list[Choice] = []

    def chosen(names: frozenset[str], where: str, bring: Bring) -> tuple[str, ...]:
        choice = choose(names, where, bring, SourceOptions(source_id=model_id), graphs="without weights")
        _check_image_model(choice)
        choices.append(choice)
        return ()

    fetch(model_id, chosen, revision=revision)
    return choices[0]


def _check_image_model(choice: Choice) -> None:
    """Check the other source that a text model needs, from its configurations.

    Raises:
        SourceError: it is none that is read, or its vectors are not the text model's.
    """
    said = choice.text_model
    if said is None:
        return
    hub = hub_id(said.image_model)
    if hub is not None:
        other = choice_of_hub(hub.model_id, hub.revision)
    else:
        path = Path(said.image_model).expanduser()
        if not path.is_dir():
            raise SourceError(f"{path}: is no folder and no hub id; --image-model names a CLIP")
        other = choose_of_folder(path, SourceOptions())
    if other.description is None or other.description.config.embed_dim != said.config.embed_dim:
        raise SourceError(
            f"{said.image_model}: is no model with vectors of {said.config.embed_dim}, as the text model's are; name "
            "the one that it was trained for with --image-model"
        )


def _bring_image_model(choice: Choice, console: Console | None) -> None:
    if choice.text_model is not None:
        at_hand(choice.text_model.image_model, SourceOptions(), console=console)


def _report(choice: Choice, console: Console | None) -> None:
    if console is not None:
        for reason in choice.passed_over:
            line = f"{reason}; reading the layout {choice.layout} instead"
            console.print(escape(line), highlight=False, soft_wrap=True)
        if choice.description is not None and choice.description.tokens.note is not None:
            console.print(f"note: {escape(choice.description.tokens.note)}", highlight=False, soft_wrap=True)
