"""Models from a hub: what is downloaded, how it goes on after a fault, and what is said when it cannot."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from model_export.errors import IncompleteError, SourceError
from model_export.hub import download
from model_export.hub import fetch as fetching
from model_export.hub.errors import HubUnreachableError
from model_export.hub.fetch import Bring, Fetched, HubId, hub_id, resolve
from tests.support.hub_server import Fault, Hub, hub_client

MODEL = "acme/tiny-clip"
WEIGHTS = random.Random(1).randbytes(300_000)
CARD = b"---\nlicense: mit\ntags:\n- clip\n---\n# Tiny\n"
FILES = {
    "README.md": CARD,
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"p" * 5000,
    "tf_model.h5": b"t" * 5000,
    "flax_model.msgpack": b"f" * 5000,
    "example.png": b"i" * 5000,
}
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
SHARDS = f"{SHARD} model-00002-of-00002.safetensors"


WANTED = ("README.md", "config.json", "tokenizer.json", "model.safetensors")


def choose(names: frozenset[str], where: str, _bring: Bring) -> tuple[str, ...]:
    """Choose the weights and three files beside them."""
    if "model.safetensors" not in names:
        raise IncompleteError(f"{where}: holds no weights")
    return tuple(name for name in WANTED if name in names)


def fetch(model_id: str, *, revision: str | None = None, console: Console | None = None) -> Fetched:
    """Fetch what `choose` names."""
    return fetching.fetch(model_id, choose, revision=revision, console=console)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without models, and a cache of our own."""
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    with hub_client(tmp_path, monkeypatch) as running:
        yield running


def blob(content: bytes, tmp_path: Path) -> Path:
    """Where the cache keeps a large file's content."""
    return tmp_path / "hub/models--acme--tiny-clip/blobs" / hashlib.sha256(content).hexdigest()


def test_what_is_chosen_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    """The chosen files alone; no other framework's weights, no pictures."""
    commit = hub.add(MODEL, FILES)
    said = io.StringIO()
    fetched = fetch(MODEL, console=Console(file=said, width=200))
    folder = tmp_path / "hub/models--acme--tiny-clip/snapshots" / commit
    assert Fetched(folder, f"{MODEL}@{commit}", commit, "mit", WANTED) == fetched
    assert {name: FILES[name] for name in WANTED} == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(WANTED) == sorted(sent.name for sent in hub.sent)
    assert f"{MODEL}@{commit[:12]}: 4 files, 0.3 MB, 0.3 MB to download\n" == said.getvalue()


def test_nothing_is_downloaded_twice(hub: Hub) -> None:
    """What is in the cache is used."""
    hub.add(MODEL, FILES)
    first = fetch(MODEL)
    hub.sent.clear()
    assert first == fetch(MODEL)
    assert [] == hub.sent


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    """A connection that ends in the middle of a file costs only the bytes that did not arrive."""
    hub.add(MODEL, FILES)
    hub.faults["model.safetensors"] = Fault(100_000, "close")
    fetched = fetch(MODEL)
    assert (fetched.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [(0, 100_000), (100_000, 200_000)] == [(sent.start, sent.bytes) for sent in hub.bodies("model.safetensors")]


def test_a_reset_connection_is_taken_up_too(hub: Hub) -> None:
    """Also one that is torn down by whoever stands between."""
    hub.add(MODEL, FILES)
    hub.faults["model.safetensors"] = Fault(100_000, "reset")
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.bodies("model.safetensors")
    assert 0 == first.start <= second.start  # a reset may discard what was on its way


def test_a_lost_network_keeps_what_arrived(hub: Hub, tmp_path: Path) -> None:
    """When the hub stays away, one line says so; the next call asks for the rest alone."""
    hub.add(MODEL, FILES)
    hub.faults["model.safetensors"] = Fault(123_456, "vanish")
    with pytest.raises(HubUnreachableError, match=r"cannot be reached .* run the command again; what was .* is kept"):
        fetch(MODEL)
    partial = blob(WEIGHTS, tmp_path).with_name(f"{blob(WEIGHTS, tmp_path).name}.incomplete")
    assert WEIGHTS[:123_456] == partial.read_bytes()
    hub.down = False
    said = io.StringIO()
    fetched = fetch(MODEL, console=Console(file=said, width=200))
    assert "0.2 MB to download" in said.getvalue()
    assert (fetched.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (123_456, len(WEIGHTS) - 123_456) == (hub.sent[-1].start, hub.sent[-1].bytes)


def test_a_server_without_ranges_starts_again(hub: Hub) -> None:
    """Where a mirror sends the whole file again, nothing of it is in the file twice."""
    hub.add(MODEL, FILES)
    hub.ranges = False
    hub.faults["model.safetensors"] = Fault(100_000, "close")
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [0, 0] == [sent.start for sent in hub.bodies("model.safetensors")]


def test_a_killed_download_is_resumed_by_the_next_process(hub: Hub, tmp_path: Path) -> None:
    """A process that is killed in the middle of a file leaves what it has; settings come from the environment."""
    commit = hub.add(MODEL, FILES)
    hub.faults["model.safetensors"] = Fault(200_000, "stall")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    program = (
        f"import sys; from model_export.hub.fetch import fetch; print(fetch(sys.argv[1], lambda *_: {WANTED}).folder)"
    )
    command = [sys.executable, "-c", program, MODEL]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as first:
        assert hub.progress.wait(60)
        partial = blob(WEIGHTS, tmp_path).with_name(f"{blob(WEIGHTS, tmp_path).name}.incomplete")
        while not partial.exists() or partial.stat().st_size < 200_000:
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(second.stdout.strip()) == blob(WEIGHTS, tmp_path).parents[1] / "snapshots" / commit
    assert "" == second.stderr  # no bars where there is no terminal
    assert [(0, 200_000), (200_000, 100_000)] == [(sent.start, sent.bytes) for sent in hub.bodies("model.safetensors")]
    assert blob(WEIGHTS, tmp_path).read_bytes() == WEIGHTS
    assert not partial.exists()
    hub.down = True
    offline = subprocess.run(
        command, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert second.stdout == offline.stdout


def test_a_revision_is_pinned_to_its_commit(hub: Hub) -> None:
    """A branch is what it is now; a commit stays what it was when the branch has moved on."""
    old = hub.add(MODEL, FILES)
    new = hub.add(MODEL, {**FILES, "config.json": b'{"new": true}'})
    release = hub.add(MODEL, {**FILES, "config.json": b'{"release": true}'}, branch="v1")
    for revision, commit, config in (
        (None, new, b'{"new": true}'),
        (old, old, b"{}"),
        ("v1", release, b'{"release": true}'),
    ):
        fetched = fetch(MODEL, revision=revision)
        assert (commit, f"{MODEL}@{commit}") == (fetched.revision, fetched.source_id)
        assert config == (fetched.folder / "config.json").read_bytes()
        assert commit == resolve(MODEL, revision=revision)
    assert 1 == len(hub.bodies("model.safetensors"))  # the same in all three


def test_content_that_is_not_what_the_hub_states_is_deleted(hub: Hub, tmp_path: Path) -> None:
    """A digest that does not match is said, nothing of the file stays, and the next call is a new start."""
    hub.add(MODEL, FILES)
    hub.corrupted.add("model.safetensors")
    with pytest.raises(SourceError, match=r"model\.safetensors: has sha256 .* it was deleted, run the command again"):
        fetch(MODEL)
    assert [] == [path for path in blob(WEIGHTS, tmp_path).parent.iterdir() if path.stat().st_size > 1000]
    hub.corrupted.clear()
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_that_was_damaged_is_not_used(hub: Hub, tmp_path: Path, *, offline: bool) -> None:
    """What was in the cache is checked as well, with the hub or without."""
    hub.add(MODEL, FILES)
    fetch(MODEL)
    blob(WEIGHTS, tmp_path).write_bytes(bytes(len(WEIGHTS)))
    hub.down = offline
    with pytest.raises(SourceError, match=r"model\.safetensors: has sha256 .* it was deleted"):
        fetch(MODEL)
    hub.down = False
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_blob_of_another_revision_is_checked_before_it_is_used(hub: Hub, tmp_path: Path) -> None:
    """A file that the cache holds for another commit saves its download, if it is right."""
    hub.add(MODEL, FILES)
    fetch(MODEL)
    hub.add(MODEL, {**FILES, "config.json": b'{"new": true}'})
    blob(WEIGHTS, tmp_path).write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(SourceError, match=r"model\.safetensors: has sha256 .* it was deleted"):
        fetch(MODEL)
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_unknown_model_is_said(hub: Hub) -> None:
    """The hub does not tell a private model from none; nor can we."""
    with pytest.raises(SourceError, match=rf"acme/typo: is not on {hub.url}; check the spelling, or set HF_TOKEN"):
        fetch("acme/typo")


def test_an_unknown_revision_is_said(hub: Hub) -> None:
    """With where to look them up."""
    hub.add(MODEL, FILES)
    with pytest.raises(SourceError, match=rf"has no branch, tag or commit 'v9'; see {hub.url}/{MODEL}/tree/main"):
        fetch(MODEL, revision="v9")


def test_a_gated_model_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is said where to ask; with one it is downloaded, and the storage's host never sees the token."""
    hub.add(MODEL, FILES)
    hub.gated.add(MODEL)
    with pytest.raises(SourceError, match=rf"is gated; ask for access at {hub.url}/{MODEL}, then set HF_TOKEN"):
        fetch(MODEL)
    monkeypatch.setenv("HF_TOKEN", "good")
    assert (fetch(MODEL).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert ["Bearer good"] == [sent.authorization for sent in hub.bodies("config.json")]
    assert [None] == [sent.authorization for sent in hub.bodies("model.safetensors")]


def test_xet_is_not_used(hub: Hub) -> None:
    """The hub offers its large files through Xet as well, which could not be resumed; nobody asks for a token of it."""
    hub.add(MODEL, FILES)
    fetch(MODEL)
    assert ("GET", f"/{MODEL}/resolve/{resolve(MODEL)}/model.safetensors") in hub.requests
    assert [] == [path for _, path in hub.requests if "xet" in path]


@pytest.mark.parametrize("offline", [False, True])
def test_files_that_the_choice_reads_come_before_it(hub: Hub, *, offline: bool) -> None:
    """A refusal costs these files alone, from the hub and from the cache; it is not taken for an incomplete cache."""
    hub.add(MODEL, FILES)
    if offline:
        fetch(MODEL)
        hub.down = True

    def refuse(_names: frozenset[str], where: str, bring: Bring) -> tuple[str, ...]:
        assert FILES["config.json"] == (bring(["config.json"]) / "config.json").read_bytes()
        raise SourceError(f"{where}: is another kind")

    hub.sent.clear()
    with pytest.raises(SourceError, match=r"is another kind$") as caught:
        fetching.fetch(MODEL, refuse)
    assert type(caught.value) is SourceError
    assert ([] if offline else ["config.json"]) == [sent.name for sent in hub.sent]


def test_a_disk_that_is_too_small_is_said_before(hub: Hub) -> None:
    """A model that cannot fit is refused before the first byte."""
    hub.add(MODEL, FILES)
    hub.claimed_sizes["model.safetensors"] = 10**18
    with pytest.raises(SourceError, match=r"1000000000000\.0 MB are to be downloaded, .* set HF_HOME"):
        fetch(MODEL)
    assert [] == hub.sent


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_disk_that_fills_up_is_said(hub: Hub, tmp_path: Path) -> None:
    """With what to do about it."""
    hub.add(MODEL, FILES)
    target = blob(WEIGHTS, tmp_path)
    target.parent.mkdir(parents=True)
    target.with_name(f"{target.name}.incomplete").symlink_to("/dev/full")
    with pytest.raises(SourceError, match=r"the disk is full; free some space or set HF_HOME .* what was .* is kept"):
        fetch(MODEL)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, "does not answer as a hub does; check HF_ENDPOINT"),
        (404, "answers HTTP 404; check HF_ENDPOINT"),
        (403, "the token is not allowed to read it"),
        (401, "the hub refuses the token"),
        (429, "the hub asks for fewer requests"),
        (503, r"has trouble \(HTTP 503\); try again later"),
    ],
)
def test_an_odd_answer_is_explained(hub: Hub, status: int, said: str) -> None:
    """What is no hub, has no time, or wants another token."""
    hub.status = status
    with pytest.raises(SourceError, match=said) as caught:
        fetch(MODEL)
    assert 1 == len(str(caught.value).splitlines())


def test_without_the_hub_the_cache_will_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by choice or because the hub is away: the same folder, if it is whole."""
    hub.add(MODEL, FILES)
    online = fetch(MODEL)
    hub.down = True
    said = io.StringIO()
    assert online == fetch(MODEL, console=Console(file=said, width=200))
    assert f"{online.source_id}: from the cache, the hub was not reached\n" == said.getvalue()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert online == fetch(MODEL) == fetch(MODEL, revision=online.revision)


def test_without_hub_and_cache_it_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, and that the cache does not help; also for a part of a model."""
    hub.add(MODEL, FILES)
    hub.down = True
    with pytest.raises(HubUnreachableError, match=r"cannot be reached .* check the network.*not in the cache"):
        fetch(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for ask in (fetch, resolve):
        with pytest.raises(HubUnreachableError, match=r"HF_HUB_OFFLINE is set; unset it to download"):
            ask(MODEL)


def test_a_part_of_a_model_is_not_taken_for_the_whole(hub: Hub) -> None:
    """Weights come last, so a cache that an interrupted download left is known as such."""
    hub.add(MODEL, FILES)
    hub.faults["model.safetensors"] = Fault(1000, "vanish")
    for _ in range(2):  # in the middle of the download, and without the hub from the start
        with pytest.raises(HubUnreachableError):
            fetch(MODEL)
    with pytest.raises(HubUnreachableError, match=r"the cache does not hold all of it: .* holds no weights"):
        fetch(MODEL)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/clip-vit-base-patch32", HubId("openai/clip-vit-base-patch32", None)),
        ("a/b@refs/pr/3", HubId("a/b", "refs/pr/3")),
        ("a/b@../../c", None),
        ("a/b@/etc", None),
        ("runs/demo/x", None),
        ("./a/b", None),
        ("demo", None),
        ("here/it-is", None),
    ],
)
def test_a_hub_id_is_told_from_a_path(
    source: str, expected: HubId | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OWNER/NAME, with a revision or without, unless there is something at that path."""
    (tmp_path / "here/it-is").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert expected == hub_id(source)


@pytest.mark.parametrize(("model_id", "revision"), [("a", None), ("a/b", "../c"), ("a/b@c", None), ("a--b/c", None)])
def test_what_is_no_hub_id_is_refused(hub: Hub, model_id: str, revision: str | None) -> None:
    """Before anything is asked or written."""
    with pytest.raises(SourceError, match="is not a hub id"):
        fetch(model_id, revision=revision)
    assert [] == hub.requests


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        (b"---\ntags:\n- x\nlicense: other\nlicense_name: acme-research\n---\n", "acme-research"),
        (b"---\nlicense:\n- mit\n---\n", "mit"),
        (b"# No header\nlicense: mit\n", None),
    ],
)
def test_the_licence_is_the_card_s(hub: Hub, card: bytes, licence: str | None) -> None:
    """As its header states it."""
    hub.add(MODEL, {**FILES, "README.md": card})
    assert licence == fetch(MODEL).licence
