"""Vectors of pictures and captions as Parquet shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation.embed import Embed
from model_export.curation.encoding import BundleEncoder
from model_export.curation.pieces import PieceSizes
from model_export.curation.run import Curation, curate
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError
from service.images.decoding import DEFAULT_LIMITS, decode
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE
from service.model.tokenizer import Tokenizer
from tests.support.curating import content_of, quiet
from tests.support.pairs import COLOURS, encoded_picture
from tests.support.tars import write_tar, write_tars

SMALL = PieceSizes(piece=30_000, table=10_000)
TEXTS = ("a dog", "a red car", None, "word " * 200)


@pytest.fixture(scope="module")
def encoder() -> BundleEncoder:
    """Open the demo bundle."""
    return BundleEncoder(DEMO_BUNDLE, "cpu", threads=1, batch_size=8)


def write_pictures(path: Path, rows: int) -> list[bytes | None]:
    """Write a Parquet file of pictures in row groups of ten: number 3 is no picture, number 5 is cut short."""
    rng = np.random.default_rng(rows)
    pictures = [encoded_picture(list(COLOURS.values())[row % len(COLOURS)], rng) for row in range(rows)]
    pictures[3], pictures[5] = b"none", pictures[5][:60]
    table = pa.table(
        {
            "id": [f"picture {row}" for row in range(rows)],
            "image": pictures,
            "text": [TEXTS[row % len(TEXTS)] for row in range(rows)],
            "url": [f"https://a.example/{row}" for row in range(rows)],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=10)
    return list(pictures)


def embed(data: Path, out: Path, stage: Embed, *, workers: int = 1) -> pa.Table:
    """Embed, and return the rows of all shards."""
    with quiet() as progress:
        content = curate(
            Curation([str(data)], [stage], out, sizes=SMALL, driver=LocalDriver(workers)),
            progress,
        )
    return pa.concat_tables([pq.read_table(out / shard["shard"]) for shard in content["shards"]])


def test_each_row_has_the_vector_that_the_engine_computes_for_it(encoder: BundleEncoder, tmp_path: Path) -> None:
    """Vectors lie beside their ids; a broken picture and a missing text are null, with a reason."""
    pictures = write_pictures(tmp_path / "data.parquet", 44)
    found = embed(tmp_path / "data.parquet", tmp_path / "out", Embed(encoder, texts=True, columns=("url",)))

    bundle = load_bundle(DEMO_BUNDLE)
    engine = OnnxEngine.load(bundle, "cpu", threads=1)
    assert found["id"].to_pylist() == [f"picture {row}" for row in range(44)]
    assert found["url"].to_pylist()[7] == "https://a.example/7"
    assert "image" not in found.column_names
    for row, (picture, vector, why) in enumerate(
        zip(pictures, found["image_embedding"].to_pylist(), found["image_problem"].to_pylist(), strict=True)
    ):
        if row in {3, 5}:
            assert vector is None
            assert why
        else:
            assert picture is not None
            wanted = engine.encode_images(decode(picture, bundle.manifest.image)[np.newaxis])[0]
            np.testing.assert_allclose(vector, wanted, atol=1e-5)
            assert why is None
    texts = found["text_embedding"].to_pylist()
    wanted = engine.encode_texts(Tokenizer.from_bundle(bundle).encode(["a red car"]))[0]
    np.testing.assert_allclose(texts[1], wanted, atol=1e-5)
    assert texts[2] is None
    assert found["text_problem"].to_pylist()[2] == "no text"
    np.testing.assert_allclose(np.linalg.norm(texts[3]), 1, atol=1e-5)  # a long one is cut
    recorded = json.loads((tmp_path / "out" / "dataset.json").read_bytes())
    assert recorded["stages"][1]["notes"] == {"broken picture": 2, "no text": 11, "text cut to the context": 11}


def test_any_number_of_processes_and_a_restart_give_the_same_bytes(encoder: BundleEncoder, tmp_path: Path) -> None:
    """Two processes write what one writes; a damaged shard is made again, and the others stay."""
    data = tmp_path / "data.parquet"
    write_pictures(data, 44)
    stage = Embed(encoder, dtype="float16")
    embed(data, tmp_path / "one", stage)
    embed(data, tmp_path / "two", stage, workers=2)
    wanted = content_of(tmp_path / "one")

    assert len(wanted) > 4
    assert content_of(tmp_path / "two") == wanted

    shards = sorted((tmp_path / "two").glob("*.parquet"))
    shards[1].write_bytes(b"damaged")
    kept = shards[0].stat().st_mtime_ns
    found = embed(data, tmp_path / "two", stage)

    assert content_of(tmp_path / "two") == wanted
    assert shards[0].stat().st_mtime_ns == kept
    assert found.schema.field("image_embedding").type == pa.list_(pa.float16(), encoder.dim)


def test_rows_without_a_vector_are_dropped_on_demand(encoder: BundleEncoder, tmp_path: Path) -> None:
    """They are counted under their reason."""
    write_pictures(tmp_path / "data.parquet", 20)
    found = embed(tmp_path / "data.parquet", tmp_path / "out", Embed(encoder, drop_broken=True))

    recorded = json.loads((tmp_path / "out" / "dataset.json").read_bytes())
    assert found.num_rows == 18
    assert found["image_embedding"].null_count == 0
    assert recorded["stages"][1]["dropped"] == {"broken picture": 2}


def test_rows_without_a_picture_stay(encoder: BundleEncoder, tmp_path: Path) -> None:
    """They have a null and the reason, and the vector of their caption; they are counted, and dropped on demand."""
    data = tmp_path / "data.parquet"
    write_pictures(data, 20)
    table = pq.read_table(data)
    pictures = [None if row in {7, 8} else picture for row, picture in enumerate(table["image"].to_pylist())]
    table = table.set_column(1, "image", pa.array(pictures, pa.binary()))
    pq.write_table(table, data, row_group_size=10)
    both = embed(data, tmp_path / "both", Embed(encoder, texts=True))
    texts = embed(data, tmp_path / "texts", Embed(encoder, images=False, texts=True))
    dropped = embed(data, tmp_path / "dropped", Embed(encoder, drop_broken=True))

    assert both["id"].to_pylist() == texts["id"].to_pylist() == table["id"].to_pylist()
    assert [row for row, why in enumerate(both["image_problem"].to_pylist()) if why == "no picture"] == [7, 8]
    assert both["image_embedding"].slice(7, 2).null_count == 2
    assert both["text_embedding"].slice(8, 1).null_count == 0
    assert both["text_embedding"].equals(texts["text_embedding"])
    assert dropped.num_rows == 16
    recorded = [json.loads((tmp_path / name / "dataset.json").read_bytes())["stages"] for name in ("both", "dropped")]
    assert [stages[0]["dropped"] for stages in recorded] == [{}, {}]
    assert recorded[0][1]["notes"] == {
        "broken picture": 2,
        "no picture": 2,
        "no text": 5,
        "text cut to the context": 5,
    }
    assert recorded[1][1]["dropped"] == {"broken picture": 2, "no picture": 2}


def test_a_caption_in_a_tar_outlives_its_picture(encoder: BundleEncoder, tmp_path: Path) -> None:
    """A picture that is too large to be read is none; its caption has a vector."""
    members = [("1.png", bytes(DEFAULT_LIMITS.max_bytes + 1)), ("1.txt", b"a dog")]
    write_tar(tmp_path / "data.tar", members)
    found = embed(tmp_path / "data.tar", tmp_path / "out", Embed(encoder, texts=True))

    assert found["image_problem"].to_pylist() == ["no picture"]
    assert found["text_problem"].to_pylist() == [None]


def test_tars_are_embedded(encoder: BundleEncoder, tmp_path: Path) -> None:
    """Each sample of a tar has a vector."""
    write_tars(tmp_path / "tars", [9])
    found = embed(tmp_path / "tars", tmp_path / "out", Embed(encoder, texts=True))

    assert found.num_rows == 9
    assert found["image_embedding"].null_count == found["text_embedding"].null_count == 0
    assert len(set(found["id"].to_pylist())) == 9


def test_other_settings_and_missing_columns_are_refused(encoder: BundleEncoder, tmp_path: Path) -> None:
    """The message says what to correct, and a folder of other settings is left alone."""
    data = tmp_path / "data.parquet"
    write_pictures(data, 20)
    embed(data, tmp_path / "out", Embed(encoder))

    with pytest.raises(CurationError, match="holds a data set of other recipe"):
        embed(data, tmp_path / "out", Embed(encoder, dtype="float16"))
    with pytest.raises(CurationError, match=r"no column 'photo' to pass through .* correct --columns"):
        embed(data, tmp_path / "else", Embed(encoder, columns=("photo",)))
