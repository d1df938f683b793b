"""Tests of the bundles of `make run MODEL=…`: their place, and when a source is converted again."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.export import bundle_cache
from model_export.export.bundle_cache import Place, cache_folder, contents, locate
from service.model.manifest import DEMO_BUNDLE
from tests.support.companions import companions
from tests.support.hub_server import Hub, hub_client

MODEL = "Acme/Tiny-CLIP"
HEADER = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without tensors."""
FILES = {**companions(), "model.safetensors": b"w" * 2000}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub without models."""
    with hub_client(tmp_path, monkeypatch) as running:
        yield running


def convert(place: Place) -> Place:
    """Put a bundle into its place; return the place as found from then on."""
    shutil.copytree(DEMO_BUNDLE, place.path)
    return Place(place.source, place.path, ready=True)


def test_a_bundle_is_itself(tmp_path: Path) -> None:
    """A bundle needs no conversion."""
    assert Place(str(DEMO_BUNDLE), DEMO_BUNDLE, ready=True) == locate(str(DEMO_BUNDLE), tmp_path)


def test_a_hub_id_is_converted_once_for_each_commit(hub: Hub, tmp_path: Path) -> None:
    """A model's bundle is named after the model and the commit; another commit is another bundle."""
    commit = hub.add(MODEL, FILES)
    place = locate(MODEL, tmp_path)
    assert Place(f"{MODEL}@{commit}", tmp_path / f"acme--tiny-clip-{commit[:12]}", ready=False) == place
    assert convert(place) == locate(MODEL, tmp_path)
    newer = hub.add(MODEL, {**FILES, "config.json": b"[]"})
    assert (f"{MODEL}@{newer}", False) == (locate(MODEL, tmp_path).source, locate(MODEL, tmp_path).ready)
    assert locate(f"{MODEL}@{commit}", tmp_path).ready


def test_a_text_model_is_converted_again_after_a_change_of_its_image_model(hub: Hub, tmp_path: Path) -> None:
    """Its bundle is named after both commits, and is found without the hub."""
    text, image = "acme/clip-ViT-B-32-multilingual-v1", "sentence-transformers/clip-ViT-B-32"
    mine, theirs = hub.add(text, FILES), hub.add(image, FILES)
    place = locate(text, tmp_path)
    name = "acme--clip-vit-b-32-multilingual-v1"
    assert Place(f"{text}@{mine}", tmp_path / f"{name}-{mine[:12]}-{theirs[:12]}", ready=False) == place
    assert convert(place) == locate(text, tmp_path)
    newer = hub.add(image, {**FILES, "config.json": b"[]"})
    assert Place(f"{text}@{mine}", tmp_path / f"{name}-{mine[:12]}-{newer[:12]}", ready=False) == locate(text, tmp_path)
    hub.down = True
    found = locate(text, tmp_path)
    assert (place.path, True) == (found.path, found.ready)  # the latest conversion
    assert not locate(f"{text}@{mine}", tmp_path).ready  # of the image model's last known commit


@pytest.mark.parametrize("offline", [False, True])
def test_without_the_hub_the_latest_conversion_will_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    """The latest conversion is used, even without the hub's own cache or if a newer commit is known."""
    hub.add(MODEL, FILES)
    older = convert(locate(MODEL, tmp_path))
    hub.add(MODEL, {**FILES, "config.json": b"[]"})
    latest = convert(locate(MODEL, tmp_path))
    os.utime(older.path, (1, 1))
    hub.add(MODEL, {**FILES, "config.json": b"0"})
    locate(MODEL, tmp_path)  # was seen, never converted
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    for _ in range(2):
        found = locate(MODEL, tmp_path)
        assert (latest.path, True) == (found.path, found.ready)
        assert str(found.note).endswith("; using the cached model")
        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def test_without_the_hub_a_download_can_still_be_converted(hub: Hub, tmp_path: Path) -> None:
    """A model in the hub's cache needs no hub."""
    commit = hub.add(MODEL, FILES)
    at_hand(MODEL, SourceOptions())
    hub.down = True
    place = locate(MODEL, tmp_path)
    assert (f"{MODEL}@{commit}", False) == (place.source, place.ready)


def test_a_commit_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    """A commit never changes, so it needs no hub."""
    place = locate(f"{MODEL}@{'a' * 40}", tmp_path)
    assert Place(f"{MODEL}@{'a' * 40}", tmp_path / f"acme--tiny-clip-{'a' * 12}", ready=False) == place
    assert [] == hub.requests


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("acme/typo", "acme/typo: is not on http"),
        (f"{MODEL}@v9", "has no branch, tag or commit 'v9'"),
        ("./nowhere", "is neither a bundle, a checkpoint's file or folder, a training run, nor a hub id such as"),
    ],
)
def test_what_is_nothing_is_said(hub: Hub, tmp_path: Path, model: str, said: str) -> None:
    """A refusal precedes any installation."""
    hub.add(MODEL, FILES)
    with pytest.raises(SourceError, match=said):
        locate(model, tmp_path)


def test_what_no_reader_knows_is_said(tmp_path: Path) -> None:
    """A refusal precedes any installation: a folder of photos, a photo, weights without a configuration."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cup.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/model.safetensors").write_bytes(HEADER)
    for name in ("photos", "photos/cup.jpg", "bare"):
        path = str(tmp_path / name)
        with pytest.raises(SourceError, match=f"^{re.escape(path)}: is in no layout that is read here: a training run"):
            contents(path)


def test_another_kind_of_model_is_refused_by_its_configuration(hub: Hub, tmp_path: Path) -> None:
    """A refusal precedes any installation, and no weights are downloaded for it."""
    files = {**FILES, "config.json": b'{"model_type": "jina_clip"}'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    commit = hub.add(MODEL, files)
    for source in (str(tmp_path), f"{MODEL}@{commit}"):
        with pytest.raises(SourceError, match=r"model_type is jina_clip; .*; no jina-clip v2 is read: "):
            contents(source)
    assert [] == hub.bodies("model.safetensors")


def test_neither_torch_nor_onnx_is_needed(tmp_path: Path) -> None:
    """The serving environment finds the place, and reads the configurations, without the packages of a conversion."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    program = (
        "import sys; sys.modules.update(torch=None, onnx=None, safetensors=None, huggingface_hub=None); "
        "from model_export.export.bundle_cache import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert ["missing", str(tmp_path), "weights"] == [*lines[:2], lines[3]]


def test_without_hub_and_cache_it_is_said(hub: Hub, tmp_path: Path) -> None:
    """A tag that was never requested cannot be the latest conversion."""
    hub.add(MODEL, FILES)
    convert(locate(MODEL, tmp_path))
    hub.down = True
    with pytest.raises(SourceError, match="cannot be reached"):
        locate(f"{MODEL}@v1", tmp_path)


def test_a_checkpoint_that_changes_is_converted_again(tmp_path: Path) -> None:
    """Names, sizes and times of the read files identify a folder or a file."""
    run = tmp_path / "My run!"
    (run / "tensorboard").mkdir(parents=True)
    weights = run / "model.safetensors"
    weights.write_bytes(HEADER)
    (run / "config.json").write_bytes(b'{"model_type": "clip"}')
    for growth, source in enumerate((run, weights), start=1):
        place = locate(str(source), tmp_path)
        stem, _, digest = place.path.name.rpartition("-")
        assert ({run: "my-run", weights: "model.safetensors"}[source], 12) == (stem, len(digest))
        assert (str(source), False) == (place.source, place.ready)
        ready = convert(place)
        (run / "tensorboard/events").write_text(digest)  # is not read
        assert ready == locate(str(source), tmp_path)
        weights.write_bytes(HEADER + b"w" * growth)
        assert not locate(str(source), tmp_path).ready


def test_a_bundle_of_another_schema_is_converted_again(tmp_path: Path) -> None:
    """A bundle that this version cannot serve is not ready."""
    (tmp_path / "weights.pt").write_bytes(HEADER)
    place = convert(locate(str(tmp_path / "weights.pt"), tmp_path))
    manifest = place.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    assert not locate(str(tmp_path / "weights.pt"), tmp_path).ready


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CACHE_HOME, or ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "anyclass/bundles" == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / ".cache/anyclass/bundles" == cache_folder()


@pytest.mark.parametrize("name", ["ViT-B-32", "vit-b-32"])
def test_the_name_of_a_size_is_answered_with_its_hub_id(tmp_path: Path, name: str) -> None:
    """`anyclass-export list` prints names, which are no sources; the message says what to write."""
    with pytest.raises(SourceError, match=r"ViT-B-32 names a size, whose published weights are openai/clip-vit-base-"):
        locate(name, tmp_path)


def test_a_source_of_weights_needs_torch_and_graphs_do_not(hub: Hub, tmp_path: Path) -> None:
    """Known before anything is installed, for folders and the hub, as that open_clip is needed; else unknown."""
    graphs = {**companions(), "onnx/vision_model.onnx": b"v", "onnx/text_model.onnx": b"t"}
    tower = {"timm_model_name": "vit_pe_core_base_patch16_224"}
    model = {"embed_dim": 32, "vision_cfg": tower, "text_cfg": {"vocab_size": 600}}
    pe_core = {
        "open_clip_config.json": json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": 0.5}}).encode(),
        "bpe_simple_vocab_16e6.txt.gz": graphs["bpe_simple_vocab_16e6.txt.gz"],
        "open_clip_model.safetensors": b"w",
    }
    kinds = {"graphs": graphs, "weights": {**graphs, "model.safetensors": b"w"}, "open_clip": pe_core}
    for name, files in kinds.items():
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert name == contents(str(tmp_path / name))
        commit = hub.add(f"acme/{name}", files)
        assert name == contents(f"acme/{name}@{commit}")
    hub.down = True
    assert "unknown" == contents(f"acme/weights@{commit}")


def test_as_a_program_it_prints_four_lines(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scripts/model.sh reads the four lines; notes and errors go to stderr."""
    commit = hub.add(MODEL, FILES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bundle_cache", MODEL])
    path = tmp_path / f"anyclass/bundles/acme--tiny-clip-{commit[:12]}"
    bundle_cache.main()
    assert (f"missing\n{MODEL}@{commit}\n{path}\nweights\n", "") == capsys.readouterr()
    convert(Place(MODEL, path, ready=False))
    hub.down = True
    bundle_cache.main()
    out, err = capsys.readouterr()
    assert ("ready", str(path)) == (out.splitlines()[0], out.splitlines()[2])
    assert f"anyclass: {MODEL}: {hub.url} cannot be reached" in err
    monkeypatch.setattr("sys.argv", ["bundle_cache", "nowhere"])
    with pytest.raises(SystemExit, match=r"^anyclass: nowhere: is neither"):
        bundle_cache.main()
