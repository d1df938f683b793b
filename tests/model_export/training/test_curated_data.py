"""Curated data in training: read as they are, named in the run and in the bundle, refused when they changed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from model_export.curation.pieces import PieceSizes
from model_export.curation.run import Curation, curate
from model_export.data.curated import curated_digests
from model_export.errors import DataError
from model_export.training.run import train
from tests.model_export.test_cli import in_this_process
from tests.support.curating import quiet
from tests.support.pairs import recipe_text, write_pairs


def curated(folder: Path, kind: str) -> tuple[Path, str]:
    """Curate pairs into shards of this kind; return their folder and the data set's digest."""
    write_pairs(folder / "pairs.parquet", 80)
    out, sizes = folder / "curated", PieceSizes(piece=30_000, table=10_000)
    with quiet() as progress:
        made = curate(Curation([str(folder / "pairs.parquet")], (), out, sizes=sizes, kind=kind), progress)
    assert len(made["shards"]) > 1
    assert all(shard["shard"].endswith(f".{kind}") for shard in made["shards"])
    return out, made["digest"]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_the_digest_of_the_data_reaches_the_bundle(tmp_path: Path, kind: str) -> None:
    """Curate, train, export: the manifest names the data set."""
    out, digest = curated(tmp_path, kind)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text([out], epochs="1"), encoding="utf-8")
    run = train(recipe, out=tmp_path / "run", device="cpu", console=Console(file=io.StringIO()))

    assert [digest] == json.loads((run / "config.json").read_text())["provenance"]["data"]
    done = in_this_process("export", run, tmp_path / "bundle")
    assert 0 == done.returncode, done.stderr
    assert [digest] == json.loads((tmp_path / "bundle/manifest.json").read_text())["provenance"]["data"]


def test_a_shard_that_changed_is_refused_before_the_training(tmp_path: Path) -> None:
    """Another size, a shard that is gone, and a file that is no shard are named."""
    out, digest = curated(tmp_path, "parquet")
    assert [digest] == curated_digests([str(out), str(out / "00000.parquet")])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text([out], epochs="1"), encoding="utf-8")
    shard = out / "00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content + b"x")
    with pytest.raises(DataError, match=r"00001\.parquet: has .* bytes, and dataset\.json says"):
        train(recipe, out=tmp_path / "run", device="cpu", console=Console(file=io.StringIO()))
    shard.unlink()
    with pytest.raises(DataError, match=r"00001\.parquet: is missing"):
        curated_digests([str(out)])
    shard.write_bytes(content)
    (out / "more.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"more\.parquet: is not among the shards"):
        curated_digests([str(out)])
    (out / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="is no record of a curated data set"):
        curated_digests([str(out)])
    assert not (tmp_path / "run").exists()


def test_other_files_belong_to_no_curated_set(tmp_path: Path) -> None:
    """Files at URLs and in other folders have no digest."""
    write_pairs(tmp_path / "pairs.parquet", 16)

    assert [] == curated_digests([str(tmp_path), "s3://bucket/pairs.parquet"])
