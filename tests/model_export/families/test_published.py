"""The table of published families: in the docs, in the list, and in refusals."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.model_source import SourceOptions
from model_export.cli import app
from model_export.errors import SourceError
from model_export.families.published import READ, REFUSED, forbids_commerce
from tests.support.hub_server import Hub, hub_client
from tests.support.places import ROOT
from tests.support.repositories import NO_WEIGHTS, hugging_face


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub without models, with a cache of its own."""
    with hub_client(tmp_path / "home", monkeypatch) as running:
        yield running


def section(title: str) -> list[tuple[str, ...]]:
    """Return the rows of the first table of a section of docs/models.md."""
    text = (ROOT / "docs/models.md").read_text("utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    return rows[2:]


def marked(licence: str) -> str:
    """Return a licence as the docs have it."""
    return f"**{licence}**" if forbids_commerce(licence) else licence


def test_the_docs_have_the_table() -> None:
    """Row by row; each test that a row names exists."""
    read = [(r.name, r.layouts, r.tokens, r.scoring, r.pixels, marked(r.licence), f"`{r.test}`") for r in READ]
    assert read == section("Families that are read")
    assert [(r.name, marked(r.licence), r.reason) for r in REFUSED] == section("Families that are not read")
    assert all((ROOT / "tests/model_export" / each.test).is_file() for each in READ)


def test_the_list_has_every_family() -> None:
    """For people and for programs."""
    shown = CliRunner().invoke(app, ["list", "--families"], env={"COLUMNS": "160", "NO_COLOR": "1"})
    assert 0 == shown.exit_code
    for family in (*READ, *REFUSED):
        assert family.name in shown.stdout
    assert "apple-amlr (nc)" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["list", "--families", "--json"]).stdout)
    assert [each.name for each in READ] == [each["name"] for each in told["read"]]
    assert [each.name for each in REFUSED] == [each["name"] for each in told["refused"]]


NAMED = {
    "Chinese-CLIP": "OFA-Sys/chinese-clip-vit-base-patch16",
    "AltCLIP": "BAAI/AltCLIP",
    "M-CLIP": "M-CLIP/XLM-Roberta-Large-Vit-B-32",
    "jina-clip v1": "jinaai/jina-clip-v1",
    "jina-clip v2": "jinaai/jina-clip-v2",
    "nomic-embed-vision": "nomic-ai/nomic-embed-vision-v1.5",
    "TIPS v2": "google/tipsv2-b14",
    "FG-CLIP 2": "qihoo360/fg-clip2-base",
    "Immich's graphs": "immich-app/ViT-B-32__openai",
    "vision-language embedders (Qwen3-VL-Embedding, e5-v)": "Qwen/Qwen3-VL-Embedding-2B",
}


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_a_family_is_refused_by_name(hub: Hub, family: object) -> None:
    """In one line with the reason, from its configuration alone."""
    row = next(each for each in REFUSED if each is family)
    config = b'{"model_type": "unknown", "auto_map": {"AutoModel": "x.Y"}}'
    hub.add(NAMED[row.name], {"config.json": config, "model.safetensors": NO_WEIGHTS, "visual/model.onnx": NO_WEIGHTS})
    with pytest.raises(SourceError, match="model_type is unknown") as caught:
        at_hand(NAMED[row.name], SourceOptions())
    assert str(caught.value).endswith(f"; no {row.name} is read: {row.reason}")
    assert {"config.json"} == {sent.name for sent in hub.sent}


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [("cc-by-nc-4.0", True), ("apple-amlr", True), ("mit", False), ("apache-2.0", False), ("cc-by-sa-4.0", False)],
)
def test_a_licence_without_commerce_is_said(hub: Hub, tmp_path: Path, licence: str, *, forbids: bool) -> None:
    """One line; the model is converted all the same, and the manifest has the licence."""
    card = f"---\nlicense: {licence}\n---\n".encode()
    hub.add("acme/tiny", {**hugging_face(tmp_path), "README.md": card})
    said = io.StringIO()
    _, options = at_hand("acme/tiny", SourceOptions(), console=Console(file=said, width=200))
    assert licence == options.licence
    assert forbids == (f"note: the licence of acme/tiny, {licence}, forbids commercial use" in said.getvalue())
