"""Tests of runs that start from published weights: what is kept of them, and what is refused."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import ModelExportError, RecipeError
from model_export.export.from_weights import export_model
from model_export.training.checkpoints import FOLDER, open_newest
from model_export.training.image_size import at_image_size, resize_positions
from model_export.training.ranks import ALONE
from model_export.training.run import train
from service.model.loading import load_bundle
from tests.model_export.conftest import Heard
from tests.model_export.families.test_tokenizers import canonical
from tests.support.hub_server import hub_client
from tests.support.layouts import write_layouts
from tests.support.tiny_hugging_face import (
    CLIP_SIZE,
    SIGLIP_CONTEXT,
    siglip_tokenizer,
    write_tiny_clip,
    write_tiny_siglip,
)

TEXTS = ["a photo of a cat.", "A rocket!", "a cup of tea", "Zürich, 1848", "tea &amp; a tree", "an old oak", "犬", "b"]
WORDS = ["red", "green", "blue", "tea", "oak", "a &amp; b", "jam", "bad"]

RESIZED = [
    (
        3,
        4,
        [
            [
                0.0,
                0.726119,
                0.405411,
                0.538433,
                1.041791,
                0.665236,
                0.344528,
                0.477549,
                0.980908,
                0.576555,
                0.255847,
                0.388868,
                0.892227,
                0.515672,
                0.194963,
                0.327985,
                0.831343,
            ],
            [
                0.3,
                1.026119,
                0.782586,
                0.427862,
                0.184328,
                0.965236,
                0.721703,
                0.366978,
                0.123445,
                0.876555,
                0.633022,
                0.278297,
                0.034764,
                0.815672,
                0.572138,
                0.217414,
                -0.026119,
            ],
        ],
    ),
    (
        5,
        3,
        [
            [0.0, 0.61413, 0.581968, 0.461254, 0.441481, 0.492134, 0.671406, 0.338959, 0.463621, 0.618532],
            [0.3, 0.65742, 0.412451, 0.561041, 0.489996, 0.543245, 0.438841, 0.438746, 0.691914, 0.28587],
        ],
    ),
]
"""Sides of two grids, and the two channels after `resize_pos_embed` of open_clip 3.3.0, of the test's embeddings."""


def write_captions(
    path: Path, texts: list[str], size: tuple[int, int] = (40, 40), *, labels: bool = False
) -> list[Image.Image]:
    """Write one pair for each text, with noise as its picture; return the pictures."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)) for _ in texts]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    classes = {"label": [str(i % 2) for i in range(len(texts))]} if labels else {}
    pq.write_table(pa.table({"image": encoded, "text": texts, **classes}), path)
    return pictures


def recipe(folder: Path, texts: list[str], *, optim: str = "", rest: str = "") -> Path:
    """Write a recipe without a model: one step of all pairs, whole pictures."""
    path = folder / "fine.toml"
    path.write_text(
        f"""
name = "fine"
log_every = 1
[data]
files = ["captions.parquet"]
validation_every = 0
workers = 0
[augment]
crop_area = [1.0, 1.0]
[captions]
templates = ["{{}}"]
class_name_share = 0
[optim]
epochs = 1
batch_size = {len(texts)}
warmup_steps = 1
lr = 1e-4
precision = "fp32"
{optim}
{rest}
""",
        encoding="utf-8",
    )
    return path


def quiet() -> Console:
    """Make a console that records its output."""
    return Console(file=io.StringIO(), width=200)


def first_loss(run: Path) -> float:
    """Return the loss of a run's first step."""
    line = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return float(json.loads(line)["loss"])


def clip_loss(folder: Path, pictures: list[Image.Image], texts: list[str]) -> float:
    """Return the loss of transformers' CLIP."""
    model: Any = CLIPModel.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return float(model(**tokens, **pixels, return_loss=True).loss)


def siglip_loss(folder: Path, pictures: list[Image.Image], texts: list[str]) -> float:
    """Return the loss of transformers' SigLIP."""
    model: Any = SiglipModel.from_pretrained(folder)
    rows = [each.ids for each in siglip_tokenizer().encode_batch([canonical(text) for text in texts])]
    ids = torch.tensor([row + [1] * (SIGLIP_CONTEXT - len(row)) for row in rows])
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return float(model(input_ids=ids, **pixels, return_loss=True).loss)


@pytest.mark.parametrize(
    ("write", "reference"), [(write_tiny_clip, clip_loss), (write_tiny_siglip, siglip_loss)], ids=["clip", "siglip"]
)
@pytest.mark.timeout(600)
def test_the_first_loss_is_transformers_and_the_run_is_exported(tmp_path: Path, write: Any, reference: Any) -> None:
    """Weights, tokenizer, preprocessing and loss of a Hugging Face folder are kept; the tuned model makes a bundle."""
    source = write(tmp_path / "source")
    pictures = write_captions(tmp_path / "captions.parquet", TEXTS)
    path = recipe(tmp_path, TEXTS, rest="[objective]\nchunk = 3\n" if write is write_tiny_siglip else "")

    run = train(path, out=tmp_path / "run", start_from=str(source), device="cpu", console=quiet())

    assert reference(source, pictures, TEXTS) == pytest.approx(first_loss(run), abs=1e-5)
    before, after = load_model(source, SourceOptions()), load_model(run, SourceOptions())
    assert (before.image, before.text, before.tokenizer) == (after.image, after.text, after.tokenizer)
    assert before.scoring.kind == after.scoring.kind
    changed = [name for name, tensor in before.weights().items() if not torch.equal(tensor, after.weights()[name])]
    assert "visual.conv1.weight" in changed
    assert "text.token_embedding.weight" in changed
    heard = Heard()
    manifest = export_model(after, tmp_path / "bundle", listener=heard)
    assert heard.reports[-1].passed
    assert manifest == load_bundle(tmp_path / "bundle").manifest


def test_a_run_starts_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are fetched as for an export; the run records model, commit and licence of its start."""
    folder = write_tiny_clip(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_captions(tmp_path / "captions.parquet", TEXTS)
    with hub_client(tmp_path, monkeypatch) as hub:
        commit = hub.add("acme/Tiny-CLIP", {**files, "README.md": b"---\nlicense: mit\n---\n"})
        path = recipe(tmp_path, TEXTS)
        run = train(path, out=tmp_path / "run", start_from="acme/Tiny-CLIP", device="cpu", console=quiet())

    known = load_model(run, SourceOptions()).provenance
    digest = load_model(folder, SourceOptions()).provenance.source_sha256
    origin = f"beginning with the weights sha256:{digest} of acme/Tiny-CLIP@{commit}"
    assert (f"trained from fine, {origin}", "mit") == (known.source, known.licence)


@pytest.mark.parametrize("layout", ["OpenAI archive", "open_clip .pt", "Hugging Face, in shards", "own run"])
def test_a_run_starts_from_every_layout(tmp_path: Path, layout: str) -> None:
    """Texts are cleaned as the layout's program does; the first loss is that of an independent CLIP."""
    written = write_layouts(tmp_path, "vit")
    source, options = written.sources[layout]
    pictures = write_captions(tmp_path / "captions.parquet", WORDS, size=(32, 32))

    run = train(
        recipe(tmp_path, WORDS),
        out=tmp_path / "tuned",
        start_from=source,
        start_options=options,
        device="cpu",
        console=quiet(),
    )

    cleans = layout.startswith(("OpenAI", "open_clip"))
    tokenizer = Tokenizer.from_str((run / "tokenizer.json").read_text("utf-8"))
    rows = [each.ids for each in tokenizer.encode_batch([html.unescape(word) if cleans else word for word in WORDS])]
    ids = torch.tensor([row + [0] * (32 - len(row)) for row in rows])
    section = load_model(run, SourceOptions()).image
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])) / 255
    normalised = (pixels - torch.tensor(section.mean)) / torch.tensor(section.std)
    with torch.no_grad():
        images, texts = written.model(normalised.permute(0, 3, 1, 2), ids)
    logits = np.exp(2.75) * functional.normalize(images) @ functional.normalize(texts).T
    target = torch.arange(len(WORDS))
    wanted = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    assert wanted.item() == pytest.approx(first_loss(run), abs=1e-5)
    said = json.loads((run / "config.json").read_text("utf-8"))
    assert ("clip" if cleans else "none") == said["text"].get("cleaning", "none")
    assert "trained from fine, beginning with the weights sha256:" in said["provenance"]["source"]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ('[model]\nsize = "ViT-B-32"', r"does not fit the recipe's model: embed_dim is 512 in the recipe and 24 there"),
        ('[model]\nsize = "ViT-B-16-SigLIP"', r"\[model\] is ViT-B-16-SigLIP, siglip/vit, this is clip/vit"),
        ('[model.image]\nkind = "vit"\npatch_size = 16', r"image.patch_size is 16 in the recipe and 8 there"),
        ('[model.image]\nkind = "residual_conv"', r"\[model\] is clip/residual_conv, this is clip/vit"),
        (
            '[model.image]\nkind = "vit"\n[model.text]\nvocab_size = 514',
            r"its tokenizer has up to \d+ tokens, model.text.vocab_size is 514",
        ),
        ("[input]\nmean = [0.5, 0.5, 0.5]", r"prepares pictures in another way: \[input\] mean is"),
        ('[objective]\nloss = "sigmoid"', None),
    ],
)
def test_a_recipe_that_contradicts_the_start_is_refused_before_anything_is_written(
    tmp_path: Path, rest: str, message: str | None
) -> None:
    """The message names the key and both values; a loss is the recipe's to choose."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    out = tmp_path / "run"
    path = recipe(tmp_path, TEXTS, rest=rest)
    if message is None:
        train(path, out=out, start_from=source, device="cpu", console=quiet())
        assert load_model(out, SourceOptions()).scoring.kind == "sigmoid"
        return
    with pytest.raises(RecipeError, match=message) as caught:
        train(path, out=out, start_from=source, device="cpu", console=quiet())
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(("side", "new_side", "expected"), RESIZED)
def test_position_embeddings_are_resized_as_by_open_clip(side: int, new_side: int, expected: list[list[float]]) -> None:
    """To larger and smaller grids; the class token is kept."""
    embedding = torch.tensor([[(7 * i + 3 * j) % 11 / 10 for j in range(2)] for i in range(side**2 + 1)])
    resized = resize_positions(embedding, side, new_side)
    assert torch.equal(embedding[0], resized[0])
    torch.testing.assert_close(resized.T, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.timeout(600)
def test_a_start_is_trained_at_another_image_size(tmp_path: Path) -> None:
    """One line says so; the other weights and the preprocessing are kept, and the tuned model makes a bundle."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS, (60, 60))
    old, new = CLIP_SIZE, 48
    path = recipe(tmp_path, TEXTS, rest=f'[model.image]\nkind = "vit"\nimage_size = {new}\npatch_size = 8')
    before, console = load_model(source, SourceOptions()), quiet()

    run = train(path, out=tmp_path / "run", start_from=str(source), device="cpu", console=console)

    assert (
        f"note: {source}: position embeddings are interpolated, for pictures of {new} pixels, not {old}\n"
        in console.file.getvalue()  # type: ignore[attr-defined]
    )
    after = load_model(run, SourceOptions())
    assert (new, new, new) == (after.image.height, after.image.width, after.config.image.image_size)
    assert before.image == after.image.model_copy(update={"height": old, "width": old})
    expected = resize_positions(before.weights()["visual.positional_embedding"], old // 8, new // 8)
    # AdamW's first step moves no weight by more than the rate.
    torch.testing.assert_close(after.weights()["visual.positional_embedding"], expected, rtol=0, atol=1.1e-4)
    heard = Heard()
    export_model(after, tmp_path / "bundle", listener=heard)
    assert heard.reports[-1].passed


def test_an_image_size_that_does_not_fit_the_patches_is_refused(tmp_path: Path) -> None:
    """The message names the patches and the nearest sizes; nothing is written."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    path = recipe(tmp_path, TEXTS, rest='[model.image]\nkind = "vit"\nimage_size = 36\npatch_size = 9')
    with pytest.raises(RecipeError, match="has patches of 8 pixels, of which image_size 36 is no multiple; 32 and 40"):
        train(path, out=tmp_path / "run", start_from=str(source), device="cpu", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_siglip_has_whole_patches_at_any_size(tmp_path: Path) -> None:
    """As So400m/14 at 384; a ResNet's attention pool is left to the check of the recipe."""
    siglip = load_model(write_tiny_siglip(tmp_path / "siglip"), SourceOptions())
    assert (16, 32) == siglip.model.visual.positional_embedding.shape
    larger = at_image_size(siglip, 52, "tiny")
    assert (36, 32) == larger.model.visual.positional_embedding.shape
    assert (52, 52, 52) == (larger.image.height, larger.image.width, larger.config.image.image_size)
    layout = write_layouts(tmp_path, "modified_resnet")
    path, options = layout.sources["OpenAI archive"]
    resnet = load_model(path, options)
    assert resnet is at_image_size(resnet, 96, "tiny")


@pytest.mark.parametrize(
    ("rest", "optim", "message"),
    [
        ("", "", r"states no model: add \[model.image\], or \[model\] with a size; or start from a model with --from"),
        ('[model]\nsize = "ViT-B-33"', "", "ViT-B-33' names no size; did you mean ViT-B-32"),
        ('[model]\nsize = "ViT-B-32"\nembed_dim = 512', "", "states the towers; leave embed_dim out"),
        ("[model.text]\nwidth = 64", "", r"text without \[model.image\]; add it, or name a size"),
        ('[model]\nsize = "RN50"', 'freeze = ["image"]', "which is random: add --from"),
        ('[model]\nsize = "RN50"', 'freeze = ["image", "text"]', "nothing would be trained; freeze one"),
        ('[model]\nfrom_start = "image"', "", r"needs the towers: add \[model.image\], as the start has it"),
        ('[model]\nfrom_start = "image"\n[model.image]\nkind = "vit"', "", "takes an image tower: add --from"),
    ],
)
def test_a_recipe_without_a_model_or_a_start_is_refused(tmp_path: Path, rest: str, optim: str, message: str) -> None:
    """One line names the key and the remedy; nothing is written."""
    write_captions(tmp_path / "captions.parquet", TEXTS)
    path = recipe(tmp_path, TEXTS, rest=rest, optim=optim)
    with pytest.raises(ModelExportError, match=message) as caught:
        train(path, out=tmp_path / "run", device="cpu", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("layout", ["vit", "modified_resnet"])
def test_a_frozen_tower_keeps_its_bits_and_costs_no_state(tmp_path: Path, tower: str, layout: str) -> None:
    """LiT: weights and batch norms' statistics stay, in evaluations too, and no optimiser state is kept for them."""
    written = write_layouts(tmp_path, layout)
    source, options = written.sources["OpenAI archive"]
    write_captions(tmp_path / "captions.parquet", WORDS * 3, labels=True)
    path = recipe(tmp_path, WORDS, optim=f'freeze = ["{tower}"]\nmuon_lr = 0.01', rest="")
    text = path.read_text("utf-8").replace("validation_every = 0", "validation_every = 4")
    path.write_text("evaluate_every = 1\ncheckpoint_every = 1\n" + text, "utf-8")

    run = train(path, out=tmp_path / "tuned", start_from=source, start_options=options, device="cpu", console=quiet())

    assert "captions/top1" in (run / "metrics.jsonl").read_text("utf-8")
    before, after = load_model(source, options).weights(), load_file(run / "model.safetensors")
    prefix = {"image": "visual.", "text": "text."}
    for name, tensor in after.items():
        kept = torch.equal(tensor, before[name])
        if name.startswith(prefix[tower]):
            assert kept, name
    trained = prefix["text" if tower == "image" else "image"]
    assert not any(torch.equal(after[name], before[name]) for name in after if name == f"{trained}blocks.0.ln_1.weight")
    names = [name.split("/") for name in open_newest(run / FOLDER, ALONE, pytest.fail).sizes]
    parameters = {name for name, _ in load_model(source, options).model.named_parameters()}
    states = {path[2] for path in names if path[0] == "optimizer"}
    assert {name for name in parameters if not name.startswith(prefix[tower])} == states


@pytest.mark.parametrize("loss", ["", '[objective]\nloss = "sigmoid"'], ids=["softmax", "sigmoid"])
def test_a_resumed_run_needs_no_start(tmp_path: Path, loss: str) -> None:
    """Towers, tokenizer and preprocessing are in the run's folder; its weights are those of an undisturbed run."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS * 3)
    path = recipe(tmp_path, TEXTS, rest=loss)
    path.write_text("checkpoint_every = 2\n" + path.read_text("utf-8"), "utf-8")
    run = train(path, out=tmp_path / "run", start_from=source, device="cpu", console=quiet())
    whole = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()

    train(path, out=run, resume=True, device="cpu", console=quiet())

    again = load_file(run / "model.safetensors")
    assert bool(loss) == ("logit_bias" in whole)
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_second_stage_keeps_the_loss_of_the_first(tmp_path: Path) -> None:
    """A CLIP that was trained with sigmoids goes on with them; by `softmax` it loses its bias again."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    kinds = {}
    start: Path = source
    for name, keys in (
        ("first", '[objective]\nloss = "sigmoid"'),
        ("second", ""),
        ("third", '[objective]\nloss = "softmax"'),
    ):
        path = recipe(tmp_path, TEXTS, rest=keys)
        start = train(path, out=tmp_path / name, start_from=start, device="cpu", console=quiet())
        kinds[name] = load_model(start, SourceOptions()).scoring.kind
    assert {"first": "sigmoid", "second": "sigmoid", "third": "softmax"} == kinds


IMAGE_TOWER = """
[model]
from_start = "image"
embed_dim = 24
[model.image]
kind = "vit"
image_size = {size}
patch_size = 8
width = 32
layers = 2
heads = 2
mlp_width = 96
[model.text]
vocab_size = 520
context_length = 16
width = 16
layers = 1
heads = 2
[input]
mean = [0.48145466, 0.4578275, 0.40821073]
"""


def test_an_image_tower_learns_another_vocabulary(tmp_path: Path) -> None:
    """LiT: the tower of a start, locked, beside a text tower and a tokenizer that are new."""
    source = write_tiny_clip(tmp_path / "source")
    before = load_model(source, SourceOptions())
    write_captions(tmp_path / "captions.parquet", TEXTS)
    size = before.image.height
    path = recipe(tmp_path, TEXTS, optim='freeze = ["image"]', rest=IMAGE_TOWER.format(size=size))

    run = train(path, out=tmp_path / "run", start_from=source, device="cpu", console=quiet())

    after = load_model(run, SourceOptions())
    assert before.tokenizer != after.tokenizer
    assert 520 == after.config.text.vocab_size
    weights = after.weights()
    tower = {name: value for name, value in before.weights().items() if name.startswith("visual.")}
    assert all(torch.equal(value, weights[name]) for name, value in tower.items())
    assert (520, 16) == weights["text.token_embedding.weight"].shape


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patch_size = 8", "patch_size = 4", r"its image tower does not fit the recipe's: image.patch_size is 4"),
        ("mlp_width = 96", "", "image.mlp_width is None in the recipe and 96 there"),
        ("embed_dim = 24", "embed_dim = 16", "embed_dim is 16 in the recipe and 24 there"),
        ("mean = [0.48145466", "mean = [0.5", r"another way: input.mean is \[0.5"),
        (
            IMAGE_TOWER.partition("[model.text]")[0].partition("[model.image]")[2],
            '\nkind = "residual_conv"\n',
            "is clip",
        ),
    ],
)
def test_another_image_tower_than_the_starts_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """One line names the key and both values; nothing is written."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    size = load_model(source, SourceOptions()).image.height
    rest = IMAGE_TOWER.replace(old, new).format(size=size)
    path = recipe(tmp_path, TEXTS, rest=rest)
    with pytest.raises(RecipeError, match=message) as caught:
        train(path, out=tmp_path / "run", start_from=source, device="cpu", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_whitening_tower_goes_on_with_pictures_of_twice_the_size(tmp_path: Path) -> None:
    """The stem's kernel is spread over twice as many pixels, and learns from there."""
    write_captions(tmp_path / "captions.parquet", TEXTS)
    towers = IMAGE_TOWER.replace(
        "patch_size = 8\nwidth = 32\nlayers = 2\nheads = 2\nmlp_width = 96\n", "stem_width = 24\nwidths = [8, 8]\n"
    )
    towers = towers.replace('kind = "vit"', 'kind = "residual_conv"\nstem = "{stem}"')
    first = towers.replace('from_start = "image"\n', "").format(size=16, stem="whitening")
    start = train(recipe(tmp_path, TEXTS, rest=first), out=tmp_path / "first", device="cpu", console=quiet())
    second = recipe(tmp_path, TEXTS, optim='freeze = ["image"]', rest=towers.format(size=32, stem="strided"))

    run = train(second, out=tmp_path / "second", start_from=start, device="cpu", console=quiet())

    before, after = (load_file(folder / "model.safetensors") for folder in (start, run))
    kernel = before["visual.stem.conv1.weight"]
    assert torch.equal(kernel.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4, after["visual.stem.conv1.weight"])
    assert torch.equal(before["visual.stages.1.conv3.weight"], after["visual.stages.1.conv3.weight"])
    assert 32 == load_model(run, SourceOptions()).image.height
