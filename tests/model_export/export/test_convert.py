"""From a source to a bundle: hub ids and paths, weights and ONNX graphs, every precision."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import CLIPModel

from model_export.bundles.verification import verify_bundle
from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import DataError, ExportError, SourceError
from model_export.export.console import Narrator
from model_export.export.convert import Conversion, convert
from service.model.arrays import Vectors
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.tokenizer import Tokenizer
from tests.support.hub_server import Hub, hub_client
from tests.support.onnx_repository import clip_repository
from tests.support.pairs import write_pairs
from tests.support.repositories import Files, laion, marqo, reference_model, sentence_transformers, timm
from tests.support.tiny_hugging_face import write_tiny_clip
from tests.support.tiny_run import write_tiny_run

pytestmark = pytest.mark.timeout(600)

MODEL = "acme/Tiny-CLIP"
CARD = b"---\nlicense: mit\n---\n# Tiny\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub without models, with a separate cache."""
    with hub_client(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with weights."""
    return write_tiny_clip(tmp_path_factory.mktemp("tiny") / "clip")


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a repository with this folder's content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(wanted: Conversion, out: Path) -> str:
    """Convert, and return the output."""
    said = io.StringIO()
    convert(wanted, out, narrator=Narrator(Console(file=said, width=200)))
    return said.getvalue()


def test_a_hub_id_becomes_a_bundle_that_can_be_served(hub: Hub, tiny_clip: Path, tmp_path: Path) -> None:
    """A hub id is downloaded, exported and named; its commit and licence are recorded."""
    commit = hub.add(MODEL, {**files_of(tiny_clip), "README.md": CARD})

    said = run(Conversion(MODEL, SourceOptions()), tmp_path / "bundle")

    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.name, manifest.aliases) == ("tiny-clip", (MODEL,))
    assert f"{MODEL}@{commit}" == manifest.provenance.source
    assert "mit" == manifest.provenance.licence
    assert "tiny-clip: clip/vit" in said
    assert "images, batch 7" in said
    local = tmp_path / "local"
    run(Conversion(str(tiny_clip), SourceOptions(name="tiny-clip", source_id=MODEL)), local)
    assert load_bundle(local).manifest.revision == manifest.revision


@pytest.mark.parametrize(
    ("make", "place"), [(marqo, ""), (timm, ""), (laion, ""), (sentence_transformers, "0_CLIPModel/")]
)
def test_a_published_repository_becomes_its_model(
    hub: Hub, tmp_path: Path, make: Callable[[Path], Files], place: str
) -> None:
    """From the hub to a verified bundle, whose vectors are an independent model's; where transformers reads it, its."""
    hub.add(MODEL, make(tmp_path))

    run(Conversion(MODEL, SourceOptions()), tmp_path / "bundle")

    bundle = load_bundle(tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle").passed
    section = bundle.manifest.image
    pixels = np.random.default_rng(0).integers(0, 256, (3, section.height, section.width, 3), np.uint8)
    ids = Tokenizer.from_bundle(bundle).encode(["a bad cab", "head", "i"])
    engine = OnnxEngine.load(bundle, "cpu")
    got = engine.encode_images(pixels), engine.encode_texts(ids)
    engine.close()
    normalised = ((torch.from_numpy(pixels) / 255 - torch.tensor(section.mean)) / torch.tensor(section.std)).permute(
        0, 3, 1, 2
    )
    with torch.no_grad():
        assert_same_vectors(got, reference_model()(normalised, torch.from_numpy(ids)))
        if place or make is laion:
            folder = at_hand(MODEL, SourceOptions())[0] / place
            theirs = CLIPModel.from_pretrained(folder).eval()(input_ids=torch.from_numpy(ids), pixel_values=normalised)
            assert_same_vectors(got, (theirs.image_embeds, theirs.text_embeds))


def assert_same_vectors(got: tuple[Vectors, Vectors], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Compare unit vectors of images and texts; those of different inputs differ by far more."""
    for mine, theirs in zip(got, wanted, strict=True):
        unit = torch.nn.functional.normalize(theirs, dim=1).numpy()
        np.testing.assert_allclose(mine, unit, rtol=0, atol=1e-4)
        assert np.abs(mine[0] - mine[1]).max() > 1e-2


def test_onnx_graphs_from_the_hub_need_no_torch(hub: Hub, tmp_path: Path) -> None:
    """A repository of graphs without weights is converted without PyTorch."""
    clip_repository(tmp_path / "repository")
    files = {name: data for name, data in files_of(tmp_path / "repository").items() if "safetensors" not in name}
    hub.add(MODEL, files)
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "export", MODEL, str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "ONNX graphs" in done.stdout
    bundle = load_bundle(tmp_path / "bundle")
    engine = OnnxEngine.load(bundle, "cpu")
    vectors = engine.encode_texts(Tokenizer.from_bundle(bundle).encode(["a photo of a cat.", "a rocket"]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_refusal_needs_neither_torch_nor_weights(hub: Hub, tmp_path: Path) -> None:
    """Exit code 2 and one line, without PyTorch, after a download of the configuration alone."""
    files = {"config.json": b'{"model_type": "jina_clip", "auto_map": {}}', "model.safetensors": bytes(5000)}
    hub.add(MODEL, {**files, "tokenizer.json": bytes(5000)})
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "export", MODEL, str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
    )

    assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert (
        "model_type is jina_clip; clip, siglip, metaclip_2 and siglip2 can be exported; no jina-clip v2 is read"
        in done.stderr
    )
    assert ["config.json"] == [sent.name for sent in hub.sent]


def test_int8_is_calibrated_and_compared_on_real_pictures(tmp_path: Path) -> None:
    """The manifest's agreement names the pictures of --data; no fp32 bundle remains."""
    source = write_tiny_run(tmp_path / "run", "vit")
    pairs = write_pairs(tmp_path / "pairs.parquet", 60)

    said = run(
        Conversion(str(source), SourceOptions(), "int8", data=(str(pairs),), calibrate=True), tmp_path / "bundle"
    )

    manifest = load_bundle(tmp_path / "bundle").manifest
    assert "int8" == manifest.precision
    assert manifest.agreement is not None
    assert (manifest.agreement.data, manifest.agreement.images, manifest.agreement.labels) == ("pairs.parquet", 60, 4)
    assert "compared with fp32 on 60 images and 4 labels of pairs.parquet" in said
    assert ["bundle", "pairs.parquet", "run"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Conversion("x", SourceOptions(), "fp32", data=("pairs.parquet",)),
            "--data and --calibrate need --precision fp16",
        ),
        (
            Conversion("x", SourceOptions(), "fp16", data=("pairs.parquet",), calibrate=True),
            "--calibrate needs --precision int8",
        ),
        (Conversion("x", SourceOptions(), "int8", calibrate=True), "name them with --data"),
        (Conversion("x", SourceOptions(), "int8", onnx="fp16"), "leave --precision out"),
        (Conversion("x", SourceOptions(layout="open_clip"), onnx="fp32"), "and --layout is for weights"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused_first(tmp_path: Path, wanted: Conversion, said: str) -> None:
    """Contradictory options are one line, before anything is fetched or read."""
    with pytest.raises(ExportError, match=said):
        run(wanted, tmp_path / "bundle")


def test_what_is_in_no_layout_is_said(tmp_path: Path) -> None:
    """The error names the supported layouts; a missing path is reported as missing."""
    (tmp_path / "model.pb").write_bytes(b"graph")
    with pytest.raises(SourceError, match=r"no layout that is read here: .*training run.*OpenAI"):
        load_model(tmp_path, SourceOptions())
    with pytest.raises(SourceError, match="neither a file or folder nor a hub id"):
        load_model(tmp_path / "nothing", SourceOptions())


def test_data_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong --data is reported even if the source is wrong too; no partial file remains."""
    with pytest.raises(DataError, match="does not exist"):
        run(Conversion(str(tmp_path / "no"), SourceOptions(), "int8", data=("nowhere.parquet",)), tmp_path / "bundle")

    assert [] == list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_read_leaves_no_bundle(tmp_path: Path) -> None:
    """The image is named, and no partial file remains."""
    source = write_tiny_run(tmp_path / "run", "vit")
    data = tmp_path / "data"
    for name in ("cat", "rocket"):
        (data / name).mkdir(parents=True)
        (data / name / "1.png").write_bytes(b"no picture")

    with pytest.raises(DataError, match=r"cat/1\.png: "):
        run(Conversion(str(source), SourceOptions(), "int8", data=(str(data),)), tmp_path / "bundle")

    assert ["data", "run"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_weights_file_without_readable_names_is_said_to_be_damaged(tmp_path: Path) -> None:
    """A truncated archive belongs to no layout, and the error names its end; other files are named as they are."""
    cut = tmp_path / "ViT-B-32.pt"
    torch.save({"visual.proj": torch.zeros(100, 100)}, cut)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-1000])
    with pytest.raises(SourceError, match=r"ViT-B-32\.pt: is truncated or corrupt .*; download it again"):
        load_model(cut, SourceOptions())

    cut.write_bytes(whole)
    with pytest.raises(SourceError, match="no layout that is read here"):
        load_model(cut, SourceOptions())
