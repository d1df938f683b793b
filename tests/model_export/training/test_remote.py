"""Training on files of an S3 server and of an HTTP server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from pyarrow import fs
from rich.console import Console
from safetensors.torch import load_file

from model_export.data import locations
from model_export.data.opening import open_pairs
from model_export.data.parquet import PairColumns
from model_export.errors import DataError, ServerError
from model_export.training.run import train
from tests.model_export.test_cli import error_of, in_this_process
from tests.support.object_stores import BUCKET, http_server, s3_server, use_endpoint
from tests.support.pairs import recipe_text, write_pairs
from tests.support.tars import write_tars


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own, and buckets opened by it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    locations._file_system.cache_clear()
    yield folder
    locations._file_system.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file, and two tars."""
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs.parquet", 80)
    write_tars(folder / "tars", [60, 40])
    return folder


@pytest.fixture(params=["s3", "http"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, data: Path) -> Iterator[str]:
    """The address of a server of those files."""
    with ExitStack() as stack:
        server = s3_server(monkeypatch, data) if request.param == "s3" else http_server(data)
        yield stack.enter_context(server)


def trained(folder: Path, files: list[str], *, workers: str = "0") -> dict[str, torch.Tensor]:
    """Train an epoch on these files, and return the weights."""
    folder.mkdir()
    path = folder / "recipe.toml"
    text = recipe_text([], epochs="1", workers=workers)
    path.write_text(text.replace("files = []", f"files = {files}".replace("'", '"')), "utf-8")
    run = train(path, out=folder / "run", device="cpu", console=Console(file=io.StringIO()))
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize(
    ("files", "workers"), [(["pairs.parquet"], "1"), (["tars/{00000..00001}.tar", "pairs.parquet"], "0")]
)
def test_a_run_from_a_server_equals_one_from_disk(
    tmp_path: Path, data: Path, store: str, files: list[str], workers: str
) -> None:
    """Bit for bit, with and without a loading worker, from Parquet files and tars."""
    local = trained(tmp_path / "disk", [f"{data}/{name}" for name in files])
    remote = trained(tmp_path / "server", [f"{store}/{name}" for name in files], workers=workers)
    assert all(torch.equal(tensor, remote[name]) for name, tensor in local.items())


def test_a_file_that_is_not_there_is_one_line(store: str) -> None:
    """By its URL, whatever the kind."""
    for name in ("absent.parquet", "absent.tar"):
        with pytest.raises(DataError) as caught:
            open_pairs([f"{store}/{name}"], PairColumns())
        assert f"{store}/{name}: no such file" == str(caught.value)


def test_the_index_of_a_remote_tar_is_kept_in_the_cache(data: Path, store: str, cache: Path) -> None:
    """Made once; a changed file has another one."""
    name = f"{store}/tars/00000.tar"
    (first,) = open_pairs([name], PairColumns())
    (index,) = cache.rglob("*.index")
    made = index.stat().st_mtime_ns
    (again,) = open_pairs([name], PairColumns())

    assert made == index.stat().st_mtime_ns
    assert first.digest == again.digest == open_pairs([f"{data}/tars/00000.tar"], PairColumns())[0].digest
    assert f"{name}, 00000003.png" == first.where(3)


@pytest.mark.parametrize("name", ["pairs.parquet", "tars/00000.tar"])
def test_an_object_that_goes_away_under_a_run_is_named(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In one line; what was trained until then is in the last checkpoint."""
    with s3_server(monkeypatch, data) as store:
        (file,) = open_pairs([f"{store}/{name}"], PairColumns())
        fs.FileSystem.from_uri(store)[0].delete_file(f"{BUCKET}/{name}")
        with pytest.raises(DataError) as caught:
            file.load(0)
    assert f"{store}/{name}: no such file" == str(caught.value)


@pytest.mark.parametrize("name", ["pairs.parquet", "00000.tar"])
def test_missing_credentials_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A server that refuses: the message says which settings are missing."""
    with http_server(tmp_path) as address:
        use_endpoint(monkeypatch, address)
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(key, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(DataError) as caught:
            open_pairs([f"s3://secret/{name}"], PairColumns())
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"s3://secret/{name}: cannot be read (access is denied; set credentials, for S3 AWS_")
        assert not isinstance(caught.value, ServerError)
        with pytest.raises(DataError, match=r"/secret/a\.parquet: cannot be read \(403, message='Forbidden'") as denied:
            open_pairs([f"{address}/secret/a.parquet"], PairColumns())
        assert not isinstance(denied.value, ServerError)


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """Not a file that is missing; as it may answer later, the command says so by its exit code, 1."""
    with http_server(tmp_path) as address:
        pass
    with pytest.raises(ServerError, match=r"/a\.tar: cannot be read \(Cannot connect to host 127\.0\.0\.1"):
        open_pairs([f"{address}/a.tar"], PairColumns())
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text([]).replace("files = []", f'files = ["{address}/a.tar"]'), "utf-8")
    line = error_of(in_this_process("train", path, "--out", tmp_path / "run"), code=1)
    assert f"{address}/a.tar: cannot be read" in line


def test_a_scheme_that_nothing_opens_is_one_line() -> None:
    """The library's own words say which are known or what to install."""
    with pytest.raises(DataError, match=r"nosuch://x/a\.parquet: cannot be read \(Protocol not known: nosuch"):
        open_pairs(["nosuch://x/a.parquet"], PairColumns())
