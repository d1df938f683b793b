"""Repositories as people publish them: which of their files are read, and what a refusal costs."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save

from model_export.checkpoints.at_hand import at_hand, choice_of_hub
from model_export.checkpoints.choice import choose_of_folder
from model_export.checkpoints.description import disagreement
from model_export.checkpoints.hugging_face_config import describe
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.errors import SourceError
from model_export.families.metaclip_2.family import METACLIP_2
from tests.support.companions import CONFIG, companions
from tests.support.hub_server import Hub, hub_client
from tests.support.repositories import (
    CARD,
    MARQO,
    NO_WEIGHTS,
    Files,
    as_json,
    hugging_face,
    laion,
    marqo,
    marqo_siglip,
    open_clip,
    sentence_transformers,
    timm,
)
from tests.support.tiny_hugging_face import write_tiny_siglip

MODEL = "acme/tiny"
LISTED = "is in no layout that is read here: a training run of this program"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub without models, with a cache of its own."""
    with hub_client(tmp_path / "home", monkeypatch) as running:
        yield running


def written(files: Files, folder: Path) -> Path:
    """Write a repository's files into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refusal(step: Callable[[], object]) -> str:
    """Return the one line that a source is refused with."""
    with pytest.raises(SourceError) as caught:
        step()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(first: ModelSource, second: ModelSource) -> bool:
    """Whether two sources have equal weights."""
    one, two = first.model.state_dict(), second.model.state_dict()
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


# --- read ------------------------------------------------------------------------------------------------------------

READ = {
    "open_clip": (open_clip, "open_clip_model.safetensors", "open_clip"),
    "hugging_face": (hugging_face, "model.safetensors", "hugging_face"),
    "marqo": (marqo, "open_clip_model.safetensors", "open_clip"),
    "marqo_siglip": (marqo_siglip, "open_clip_model.safetensors", "open_clip"),
    "timm": (timm, "open_clip_model.safetensors", "open_clip"),
    "laion": (laion, "model.safetensors", "hugging_face"),
    "sentence_transformers": (sentence_transformers, "0_CLIPModel/model.safetensors", "hugging_face"),
}


@pytest.mark.parametrize("name", READ)
def test_the_layout_that_is_whole_is_read(hub: Hub, tmp_path: Path, name: str) -> None:
    """One file of weights is downloaded, the right one; a folder with all files is read the same way."""
    make, weights, layout = READ[name]
    files = make(tmp_path)
    commit = hub.add(MODEL, files)
    path, options = at_hand(MODEL, SourceOptions())
    assert [weights] == [sent.name for sent in hub.sent if sent.bytes > 100_000]
    source = load_model(path, options)
    assert ("tiny", (MODEL,)) == (source.name, source.aliases)
    assert f"{MODEL}@{commit}" == source.provenance.source
    assert source.provenance.recipe is not None
    assert layout == source.provenance.recipe["layout"]
    assert ("apache-2.0" if "README.md" in files else None) == options.licence

    local = load_model(written(files, tmp_path / "folder"), SourceOptions())
    assert ("folder", "folder" if layout == "hugging_face" else Path(weights).name) == (
        local.name,
        local.provenance.source,
    )
    assert same(source, local)


def test_weights_of_every_repository_are_the_same(tmp_path: Path) -> None:
    """The same model was written into all of them."""
    sources = [
        load_model(written(make(tmp_path), tmp_path / name), SourceOptions()) for name, (make, *_) in READ.items()
    ]
    assert all(same(sources[0], source) for source in sources[1:])


def test_why_a_layout_is_passed_over_is_said(hub: Hub, tmp_path: Path) -> None:
    """One line names the file, the reason and the layout that is read instead; from the hub and from a folder."""
    files = marqo(tmp_path)
    hub.add(MODEL, files)
    for source in (MODEL, str(written(files, tmp_path / "folder"))):
        said = io.StringIO()
        at_hand(source, SourceOptions(), console=Console(file=said, width=200))
        line = said.getvalue().splitlines()[0]
        assert line.startswith(f"{source}/config.json: ")
        assert "config.json: wants code of the repository to be run (auto_map), which is never done" in line
        assert line.endswith("; reading the layout open_clip instead")


def test_a_layout_may_be_forced(hub: Hub, tmp_path: Path) -> None:
    """--layout reads the layout that comes second, and a configuration that wants its own code, without that code."""
    hub.add(MODEL, laion(tmp_path))
    path, options = at_hand(MODEL, SourceOptions(layout="open_clip"))
    assert ["open_clip_model.safetensors"] == [sent.name for sent in hub.sent if sent.bytes > 100_000]
    forced = load_model(path, options)
    assert forced.provenance.recipe is not None
    assert "open_clip" == forced.provenance.recipe["layout"]

    config = as_json({**CONFIG, "auto_map": {"AutoModel": "x.Y"}})
    own = written({**hugging_face(tmp_path), "config.json": config}, tmp_path / "own")
    assert "add --layout hugging_face" in refusal(lambda: load_model(own, SourceOptions()))
    assert same(forced, load_model(own, SourceOptions(layout="hugging_face")))
    assert "own: has no weights with a configuration in the layout open_clip; leave --layout out" in refusal(
        lambda: load_model(own, SourceOptions(layout="open_clip"))
    )


def test_a_stub_without_weights_of_ours_is_not_forced(tmp_path: Path) -> None:
    """A stub describes no towers, whatever the user says."""
    folder = written(marqo(tmp_path), tmp_path / "folder")
    assert "config.json: lacks text_config and vision_config" in refusal(
        lambda: load_model(folder, SourceOptions(layout="hugging_face"))
    )


def test_of_two_layouts_the_one_whose_companions_fit_is_read(hub: Hub, tmp_path: Path) -> None:
    """A sound config.json beside another model's preprocessing does not hide open_clip's files."""
    hub.add(MODEL, {**laion(tmp_path), "preprocessor_config.json": as_json({"size": 224, "crop_size": 224})})
    said = io.StringIO()
    at_hand(MODEL, SourceOptions(), console=Console(file=said, width=400))
    assert ["open_clip_model.safetensors"] == [sent.name for sent in hub.sent if sent.bytes > 100_000]
    assert "prepares pictures of 224x224, the model takes 32x32" in said.getvalue()


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("recipe.toml",), "training_run"),
        (("pytorch_model.bin",), "hugging_face"),
        (("model.safetensors.index.json",), "hugging_face"),
        (("onnx/vision_model.onnx", "onnx/text_model.onnx"), "onnx"),
        (("onnx/vision_model.onnx", "onnx/text_model.onnx", "model.safetensors"), "hugging_face"),
    ],
)
def test_names_identify_the_other_layouts(tmp_path: Path, names: tuple[str, ...], layout: str) -> None:
    """Whatever else is in the folder."""
    folder = written({**companions(), **dict.fromkeys(names, b"")}, tmp_path / "folder")
    assert layout == choose_of_folder(folder, SourceOptions(), graphs="without weights").layout


# --- refused ---------------------------------------------------------------------------------------------------------


def hugging_face_of(config: object) -> Files:
    """Return a repository whose config.json is given."""
    content = config if isinstance(config, bytes) else as_json(config)
    return {**companions(), "config.json": content, "model.safetensors": NO_WEIGHTS}


def open_clip_of(**model: Any) -> Files:
    """Return a repository whose model_cfg is given."""
    config = as_json({"model_cfg": {"embed_dim": 32, **model}, "preprocess_cfg": {}})
    return {
        **companions(),
        "config.json": b"{}",
        "open_clip_config.json": config,
        "open_clip_model.safetensors": NO_WEIGHTS,
    }


def modules_of(*kinds: str) -> bytes:
    """Return a modules.json."""
    package = "sentence_transformers.models"
    return as_json([{"path": f"{i}_{kind}", "type": f"{package}.{kind}"} for i, kind in enumerate(kinds)])


def without(part: str, files: Files) -> Files:
    """Return the files whose names lack a part."""
    return {name: content for name, content in files.items() if part not in name}


KINDS = "clip, siglip, metaclip_2 and siglip2 can be exported"
GRAPH_KINDS = "clip and siglip can be exported"
NAFLEX = {"vision_cfg": {"timm_model_name": "naflexvit_base_patch16_gap"}, "text_cfg": {"width": 512}}
REFUSED: dict[str, tuple[Files, str]] = {
    "jina": (
        hugging_face_of({"model_type": "jina_clip", "auto_map": {"AutoModel": "x.y"}}),
        rf"config\.json: model_type is jina_clip; {KINDS}; no jina-clip v2 is read: .* code of the repository, ",
    ),
    "graphs of metaclip 2": (
        {
            "config.json": b'{"model_type": "metaclip_2"}',
            **dict.fromkeys(("onnx/vision_model.onnx", "onnx/text_model.onnx"), NO_WEIGHTS),
        },
        rf"model_type is metaclip_2; {GRAPH_KINDS}; a MetaCLIP 2 is read from its weights, not from graphs$",
    ),
    "chinese": (
        {**companions(), "config.json": as_json({"model_type": "chinese_clip"}), "pytorch_model.bin": NO_WEIGHTS},
        r"no Chinese-CLIP is read: .* BERT .*; for labels .* google/siglip2-base-patch16-224 are read$",
    ),
    "gpt": (hugging_face_of({"model_type": "gpt2"}), rf"model_type is gpt2; {KINDS}$"),
    "vision only": (hugging_face_of({"model_type": "clip_vision_model"}), r"image tower alone, and only whole models"),
    "no text tower": (
        hugging_face_of({**CONFIG, "text_config": None}),
        r"config\.json: lacks text_config: it does not describe both towers of a CLIP$",
    ),
    "stub": (hugging_face_of(MARQO), r"config\.json: wants code of the repository to be run \(auto_map\)"),
    "bad config": (hugging_face_of(b"{not json"), r"config\.json: is not JSON "),
    "open_clip naflex": (open_clip_of(**NAFLEX), r"config\.json: its image tower naflexvit_base_patch16_gap takes"),
    "open_clip of another size": (
        open_clip_of(
            vision_cfg={"timm_model_name": "vit_pe_core_base_patch16_224", "image_size": 336}, text_cfg={"width": 512}
        ),
        r"config\.json: image_size is 336, timm's vit_pe_core_base_patch16_224 takes pictures of 224 pixels$",
    ),
    "neither layout": (
        {**open_clip_of(**NAFLEX), "model.safetensors": NO_WEIGHTS},
        r"config\.json: model_type is None; .*; \S+open_clip_config\.json: its image tower .* shape, a bundle one$",
    ),
    "open_clip without text": (open_clip_of(vision_cfg={}), r"open_clip_config\.json: lacks vision_cfg and text_cfg"),
    "pe core": (
        {"PE-Core.pt": NO_WEIGHTS, "README.md": CARD, "config.json": b'{"x": 1}'},
        rf"^acme/tiny: {LISTED}.*; it holds PE-Core\.pt without a name and a configuration of these: ",
    ),
    "fp16 variant": (
        {**companions(), "model.fp16.safetensors": NO_WEIGHTS},
        r"; it holds model\.fp16\.saf",
    ),
    "immich": (
        {"config.json": b"{}", "visual/model.onnx": NO_WEIGHTS, "textual/model.onnx": NO_WEIGHTS},
        r"Immich's layout \(textual/model.onnx, visual/model.onnx\), which take a batch of one picture; export",
    ),
    "gguf": ({"x-q4.gguf": NO_WEIGHTS}, LISTED),
    "lora": ({"adapter_config.json": b"{}", "adapter_model.safetensors": NO_WEIGHTS}, LISTED),
    "shard": (
        {**companions(), "model.safetensors.index.json": b"{}", "model-00002-of-00002.safetensors": NO_WEIGHTS},
        r"^acme/tiny: lacks model-00001-of-00002\.safetensors, a part of the weights$",
    ),
    "slow tokenizer": (
        without(".gz", {**hugging_face_of(CONFIG), "vocab.json": b"{}"}),
        r"merges\.txt: is missing; vocab\.json and merges\.txt belong together$",
    ),
    "no tokenizer": (
        without(".gz", hugging_face_of(CONFIG)),
        r"holds no tokenizer .*; name one with --tokenizer$",
    ),
    "no preprocessor": (
        without("preprocessor", hugging_face_of(CONFIG)),
        r"preprocessor_config\.json: is missing; it says how pictures are prepared",
    ),
    "tokenizer of another size": (
        hugging_face_of({**CONFIG, "text_config": {**CONFIG["text_config"], "vocab_size": 3000, "eos_token_id": 2999}}),
        r"\.gz: does not hold the vocabulary of 3000 tokens that the model knows$",
    ),
    "multilingual": (
        {
            **hugging_face_of({"model_type": "distilbert"}),
            "modules.json": modules_of("Transformer", "Pooling"),
            "2_Dense/model.safetensors": NO_WEIGHTS,
        },
        r"modules\.json: is a model of sentence-transformers with the modules Transformer, Pooling, .*CLIPs",
    ),
    "module elsewhere": (
        {"modules.json": as_json([{"path": "../x", "type": "a.CLIPModel"}])},
        "names '../x', which is",
    ),
    "no list of modules": ({"modules.json": b'{"a": 1}', "model.safetensors": NO_WEIGHTS}, "modules.json: content: "),
    "no JSON of modules": ({"modules.json": b"[", "model.safetensors": NO_WEIGHTS}, "modules.json: is not JSON"),
    "empty module": ({"modules.json": modules_of("CLIPModel")}, f"acme/tiny/0_CLIPModel: {LISTED}"),
    "graphs of another kind": (
        {
            "config.json": b'{"model_type": "bert"}',
            **dict.fromkeys(("onnx/vision_model.onnx", "onnx/text_model.onnx"), NO_WEIGHTS),
        },
        rf"model_type is bert; {GRAPH_KINDS}$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_downloads_no_weights(hub: Hub, name: str) -> None:
    """One line, from files that are small: the same for an export, and for `make run` before anything is installed."""
    files, message = REFUSED[name]
    hub.add(MODEL, files)
    with pytest.raises(SourceError, match=message) as caught:
        at_hand(MODEL, SourceOptions(), graphs="without weights")
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=message):
        choice_of_hub(MODEL, None)
    assert str(caught.value).startswith(MODEL)  # not with a folder of the cache
    assert [] == [sent.name for sent in hub.sent if files[sent.name] is NO_WEIGHTS]


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_as_its_repository_is(tmp_path: Path, name: str) -> None:
    """From the same files, before the weights are read."""
    files, message = REFUSED[name]
    folder = written(files, tmp_path / "acme/tiny")
    with pytest.raises(SourceError, match=message.removeprefix("^")):
        at_hand(str(folder), SourceOptions(), graphs="without weights")


def test_two_layouts_that_disagree_are_left_to_the_user(hub: Hub, tmp_path: Path) -> None:
    """The first value that differs is named with both files, and no weights are downloaded."""
    files = laion(tmp_path)
    said = json.loads(files["open_clip_config.json"])
    said["model_cfg"]["vision_cfg"]["layers"] = 3
    hub.add(MODEL, {**files, "open_clip_config.json": as_json(said)})
    message = (
        "acme/tiny: holds two layouts that disagree: image.layers is 2 in config.json, 3 in open_clip_config.json; "
        "choose with --layout hugging_face or --layout open_clip"
    )
    assert message == refusal(lambda: at_hand(MODEL, SourceOptions()))
    assert [] == [sent.name for sent in hub.sent if sent.bytes > 100_000]
    path, options = at_hand(MODEL, SourceOptions(layout="hugging_face"))
    assert 2 == len([name for name in load_model(path, options).model.state_dict() if name.endswith("c_fc.bias")]) // 2


def test_a_layout_of_other_modules_is_no_second_description(hub: Hub, tmp_path: Path) -> None:
    """A CLIP beside settings that only open_clip's modules have: both are named, and a size that differs too."""
    files = laion(tmp_path)
    for model, vision, end in (
        ({}, {"no_ln_pre": True}, ""),
        ({}, {"no_ln_pre": True, "image_size": 64}, "; image.image_size is 32 in config.json, 64 in open_clip_config."),
    ):
        said = json.loads(files["open_clip_config.json"])
        said["model_cfg"] |= model
        said["model_cfg"]["vision_cfg"] |= vision
        hub.add(MODEL, {**files, "open_clip_config.json": as_json(said)})
        message = refusal(lambda: at_hand(MODEL, SourceOptions()))
        assert (
            "two layouts that disagree: the model is a CLIP (clip/vit) in config.json, a model that open_clip builds "
            f"(open_clip/vit) in open_clip_config.json{end}"
        ) in message
        assert message.endswith("; choose with --layout hugging_face or --layout open_clip")
    assert [] == [sent.name for sent in hub.sent if sent.bytes > 100_000]


def test_two_layouts_of_two_families_disagree(tmp_path: Path) -> None:
    """Families and sizes are named; equal descriptions do not disagree, nor kinds that share modules."""
    clip = describe(written(hugging_face(tmp_path), tmp_path / "clip"), SourceOptions())
    siglip = describe(write_tiny_siglip(tmp_path / "siglip"), SourceOptions())
    kinds = "the model is a CLIP (clip/vit) in config.json, a SigLIP (siglip/vit) in config.json; image.image_size is "
    assert str(disagreement(clip, siglip)).startswith(kinds)
    assert disagreement(clip, clip) is None
    assert disagreement(clip, replace(clip, family=METACLIP_2)) is None


def test_options_are_judged_before_the_download(hub: Hub, tmp_path: Path) -> None:
    """What an option contradicts is known from the configuration."""
    hub.add(MODEL, hugging_face(tmp_path))
    options = SourceOptions(arch="ViT-B-32")
    assert "states the architecture; leave --arch out" in refusal(lambda: at_hand(MODEL, options))
    assert [] == [sent.name for sent in hub.sent if sent.bytes > 100_000]


def test_small_files_come_before_large_ones(hub: Hub) -> None:
    """A tokenizer of megabytes is not downloaded for a configuration of another kind."""
    hub.add(MODEL, {**hugging_face_of({"model_type": "chinese_clip"}), "tokenizer.json": bytes(5000)})
    refusal(lambda: at_hand(MODEL, SourceOptions()))
    assert {"config.json", "preprocessor_config.json"} == {sent.name for sent in hub.sent}


def test_weights_without_a_tower_are_named(tmp_path: Path) -> None:
    """A configuration of both towers beside weights of one: the reader says what is lacking."""
    files = hugging_face(tmp_path)
    folder = written({**files, "model.safetensors": save({"logit_scale": torch.zeros(())})}, tmp_path / "folder")
    assert "model.safetensors: lacks " in refusal(lambda: load_model(folder, SourceOptions()))
