import builtins
import collections
import contextlib
import os
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_export.checkpoints.layouts import WeightsFormat, weights_format
from model_export.checkpoints.weight_files.tensors import is_script_archive, peek_names, read_tensors
from model_export.errors import SourceError

Weights = dict[str, Tensor]

EXPECTED: Weights = {
    "logit_scale": torch.tensor(2.5),
    "visual.small": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "visual.count": torch.tensor(7),
    "visual.inner.empty": torch.zeros(0, 3),
    "visual.inner.turned": torch.arange(12.0).reshape(3, 4).T,
}


class Inner(nn.Module):
    """A module inside a module, with what a script module may hold beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(EXPECTED["visual.inner.empty"].clone())
        self.turned = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
        self.numbers, self.more, self.flags, self.words = [1, 2], [0.5], [True], {"a": "b"}
        self.nothing: float | None = None
        self.both, self.device = (1, 2.0, "three"), torch.device("cpu")
        self.large = 1 << 40

    def forward(self, x: Tensor) -> Tensor:
        """Use everything, or TorchScript leaves it out."""
        if self.flags[0] and self.nothing is None and self.words["a"] == "b" and self.device == x.device:
            return x + self.numbers[0] + self.more[0] + self.both[1] + self.large
        return x


class Visual(nn.Module):
    """A module with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Parameter(EXPECTED["visual.small"].clone())
        self.register_buffer("count", EXPECTED["visual.count"].clone())
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        """Pass on."""
        out: Tensor = self.inner(x)
        return out


class Root(nn.Module):
    """The whole."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(EXPECTED["logit_scale"].clone())
        self.visual = Visual()

    def forward(self, x: Tensor) -> Tensor:
        """Pass on."""
        out: Tensor = self.visual(x)
        return out


def write_safetensors(path: Path) -> None:
    """Write the expected tensors."""
    save_file({name: tensor.contiguous() for name, tensor in EXPECTED.items()}, path)


def write_torch(path: Path) -> None:
    """Write them as torch does today."""
    torch.save(EXPECTED, path)


def write_legacy(path: Path) -> None:
    """Write them as torch did before 1.6."""
    torch.save(EXPECTED, path, _use_new_zipfile_serialization=False)


def write_script(path: Path) -> None:
    """Write them as a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(Root()), path)


def write_wrapped(path: Path) -> None:
    """Write them as a trainer does that runs on several devices."""
    wrapped = {f"module.{name}": nn.Parameter(t, requires_grad=False) for name, t in EXPECTED.items()}
    torch.save({"epoch": 1, "state_dict": collections.OrderedDict(wrapped), "optimizer": {"lr": 0.1}}, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "legacy": write_legacy,
    "script": write_script,
    "wrapped": write_wrapped,
}


def refusal(path: Path) -> str:
    """Return the one line that a file is refused with."""
    with pytest.raises(SourceError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_tensors_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """Names, shapes, dtypes and numbers, whatever the file is called."""
    path = tmp_path / "weights"
    WRITERS[kind](path)
    tensors = read_tensors(path)
    assert EXPECTED.keys() == tensors.keys()
    for name, expected in EXPECTED.items():
        assert expected.dtype == tensors[name].dtype
        assert torch.equal(expected, tensors[name])
        assert not tensors[name].requires_grad


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_names_are_told_without_the_tensors(kind: str, tmp_path: Path) -> None:
    """Full names, or of an archive their parts."""
    path = tmp_path / "weights"
    WRITERS[kind](path)
    assert is_script_archive(path) == (kind == "script")
    expected = {"visual", "small", "logit_scale"} if kind == "script" else EXPECTED.keys()
    assert expected <= peek_names(path)


def test_other_files_have_no_names(tmp_path: Path) -> None:
    """A missing, an empty or any other file is not an error here."""
    for name, content in (("empty", b""), ("text", b"hello"), ("zip", b"PK\x03\x04"), ("pickle", b"\x80\x02")):
        (tmp_path / name).write_bytes(content)
        assert not peek_names(tmp_path / name)
        assert not is_script_archive(tmp_path / name)
    assert not peek_names(tmp_path / "missing")
    assert weights_format(tmp_path / "text") is None


# --- files that want to run code -------------------------------------------------------------------------------------


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hostile(marker: Path) -> dict[str, object]:
    """Objects whose unpickling creates the marker, each in another way or place."""
    touch = f"open({str(marker)!r}, 'w').close()"
    system = Reduced(os.system, f"touch {marker}")
    return {
        "system": system,
        "eval": Reduced(builtins.eval, touch),
        "exec": Reduced(builtins.exec, touch),
        "copy": Reduced(shutil.copyfile, __file__, str(marker)),
        "among the weights": {**EXPECTED, "visual.evil": system},
        "as a tensor's storage": Reduced(torch._utils._rebuild_tensor_v2, system, 0, (2,), (1,), False, {}),
        "as a parameter's hooks": Reduced(torch._utils._rebuild_parameter, torch.zeros(1), False, system),
        "in a dict's items": Reduced(collections.OrderedDict, [["a", system]]),
    }


def marked(tmp_path: Path) -> Path:
    """Return where the hostile files would leave their mark."""
    return tmp_path / "executed"


HOSTILE = sorted(hostile(Path("marker")))


@pytest.mark.parametrize("name", HOSTILE)
def test_these_files_run_code_where_they_are_unpickled(name: str, tmp_path: Path) -> None:
    """The attacks are real ones: Python's own unpickler follows them."""
    content = pickle.dumps(hostile(marked(tmp_path))[name], protocol=2)
    with contextlib.suppress(Exception):  # what follows the call may fail
        pickle.loads(content)  # noqa: S301 - this is the attack
    assert marked(tmp_path).exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "script"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_wants_to_run_code_is_refused(name: str, form: str, tmp_path: Path) -> None:
    """As ``torch.save`` writes it, as it did before, and as a TorchScript archive; nothing is executed."""
    path, marker = tmp_path / "weights.pt", marked(tmp_path)
    content = hostile(marker)[name]
    if form == "script":
        write_pickle_archive(path, pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=2)
    said = refusal(path)
    assert not marker.exists()
    assert "which could run code" in said
    assert "none of it was run" in said


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    """It is none of torch's files, and is not unpickled either."""
    marker = marked(tmp_path)
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Reduced(os.system, f"touch {marker}"), protocol=2))
    assert "could run code" in refusal(tmp_path / "weights.pt")
    assert not marker.exists()


# --- TorchScript archives made by hand -------------------------------------------------------------------------------


def write_pickle_archive(path: Path, content: bytes, **records: bytes) -> Path:
    """Write an archive with this pickle; records are named ``data/NAME``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/data.pkl", content)
        archive.writestr("tiny/constants.pkl", b"\x80\x02).")
        for name, record in records.items():
            archive.writestr(f"tiny/data/{name.removeprefix('_')}", record)
    return path


def text(value: str) -> bytes:
    """Put a text on the stack."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """Put a whole number on the stack."""
    return b"J" + struct.pack("<i", value)


def shape(values: tuple[int, ...]) -> bytes:
    """Put a tuple on the stack."""
    return b"(" + b"".join(map(number, values)) + b"t"


def module(attributes: bytes) -> bytes:
    """Put a script module on the stack; attributes are keys and values."""
    return b"c__torch__\nM\n)\x81}(" + attributes + b"ub"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    """Put a storage on the stack."""
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, stored: bytes | None = None
) -> bytes:
    """Put a tensor on the stack."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return (
        call
        + b"("
        + (stored or storage())
        + number(offset)
        + shape(size)
        + shape(stride)
        + b"\x89ccollections\n"
        + (b"OrderedDict\n)RtR")
    )


FOUR = torch.arange(4.0).numpy().tobytes()


def archive_of(tmp_path: Path, value: bytes, name: str = "w", record: bytes = FOUR) -> Path:
    """Write an archive whose one module has one attribute."""
    return write_pickle_archive(tmp_path / "a.pt", b"\x80\x02" + module(text(name) + value) + b".", _0=record)


def test_an_archive_made_by_hand_is_read(tmp_path: Path) -> None:
    """So that the ones that follow are refused for what is wrong with them."""
    path = archive_of(tmp_path, tensor((2, 2), (1, 2)))
    assert torch.equal(torch.tensor([[0.0, 2.0], [1.0, 3.0]]), read_tensors(path)["w"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor((100, 100), (0, 0)), "a tensor of shape [100, 100] over 4 elements"),
        (tensor((4,), (2,)), "is damaged"),
        (tensor((4,), (1,), offset=1), "is damaged"),
        (tensor((4,), (1, 1)), "a tensor of 1 dimensions"),
        (tensor((1,) * 9, (1,) * 9), "a tensor of 9 dimensions"),
        (tensor((-1,), (1,)), "a tensor without storage, size and strides"),
        (tensor(stored=storage(count=5)), "has 16 bytes instead of 5 torch.float32"),
        (tensor(stored=storage("HalfStorage")), "has 16 bytes instead of 4 torch.float16"),
        (tensor(stored=storage(key="../1")), "lacks its record data/../1"),
        (tensor(stored=storage("SparseStorage")), "uses torch.SparseStorage"),
        (tensor(stored=b"N"), "a tensor without storage"),
        (tensor() + text("v") + tensor(stored=storage("IntStorage")), "uses its record data/0 with two types"),
        (b"cos\nsystem\n", "uses os.system"),
        (b"c__builtin__\neval\n", "uses __builtin__.eval"),
        (b"cos\n\\gsystem\n", "uses os.\\gsystem"),  # Python warns of the escape
        (b"c__torch__\nM\n(tR", "uses a call of __torch__.M"),
        (b"(" + text("x") + b"ios\nsystem\n", "uses the instruction INST"),
        (b"(cos\nsystem\n" + text("x") + b"o", "uses os.system"),
        (b"\x82\x01", "uses the instruction EXT1"),
        (text("os") + text("system") + b"\x93", "uses the instruction STACK_GLOBAL"),
        (b"ctorch\ndevice\n}b", "uses a state for torch.device"),
        (b"ctorch\ndevice\n)\x81", "uses an object of torch.device"),
        (b"}(" + b")" + b"Nu", "a key that is a tuple"),
        (b"h\x09", "is damaged"),
        (b"Nt", "is damaged"),
    ],
)
def test_a_pickle_that_torch_would_not_write_is_refused(value: bytes, message: str, tmp_path: Path) -> None:
    """Names and instructions beyond the list, and tensors that do not fit their storage."""
    assert message in refusal(archive_of(tmp_path, value))


def test_modules_without_end_are_refused(tmp_path: Path) -> None:
    """A module that holds itself, and one that holds another a thousand times, a thousand times over."""
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + text("m") + b"h\x00ub."
    assert "nested too deep" in refusal(write_pickle_archive(tmp_path / "a.pt", itself))
    wide = module(b"")
    for _ in range(3):
        wide = wide + b"q\x010" + module(b"".join(text(str(i)) + b"h\x01" for i in range(200)))
    wide = wide.replace(b"0c__torch__", b"c__torch__")
    assert "nested too deep" in refusal(write_pickle_archive(tmp_path / "b.pt", b"\x80\x02" + wide + b"."))


def test_an_attribute_without_a_proper_name_is_refused(tmp_path: Path) -> None:
    """Names become keys, of bounded length."""
    assert "without a proper name" in refusal(archive_of(tmp_path, tensor(), name="n" * 300))


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    """It holds a module, or nothing."""
    assert "holds no module" in refusal(write_pickle_archive(tmp_path / "a.pt", b"\x80\x02N."))


def test_numbers_of_another_byte_order_are_refused(tmp_path: Path) -> None:
    """They would be read as other numbers."""
    path = archive_of(tmp_path, tensor())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny/byteorder", "big")
    assert "big-endian" in refusal(path)


# --- damaged and oversized files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_file_that_is_cut_short_is_refused(kind: str, tmp_path: Path) -> None:
    """Wherever the download stopped."""
    path = tmp_path / "whole"
    WRITERS[kind](path)
    content = path.read_bytes()
    for part in (0, 3, 9, 64, len(content) // 2, len(content) - 40, len(content) - 1):
        path.write_bytes(content[:part])
        assert refusal(path)


def test_a_damaged_record_of_an_archive_is_refused(tmp_path: Path) -> None:
    """A flipped bit does not pass as a weight: every record has a checksum."""
    path = tmp_path / "a.pt"
    write_script(path)
    content = path.read_bytes()
    at = content.index(EXPECTED["visual.small"].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "is damaged (Bad CRC-32" in refusal(path)


@pytest.mark.parametrize("kind", ["script", "torch"])
def test_a_compressed_record_is_refused(kind: str, tmp_path: Path) -> None:
    """A few kilobytes of zip could become gigabytes."""
    WRITERS[kind](tmp_path / "whole")
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert "is compressed; torch never writes that" in refusal(tmp_path / "small")


def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    """A thousand records over the same bytes would need a thousand times the memory."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        archive.filelist.extend([info] * 3)
        archive._didModify = True  # type: ignore[attr-defined] # writes the table of records anew
    assert "claim more bytes than the file has" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_leads_to_another_error(seed: int, tmp_path: Path) -> None:
    """Bytes changed at random: the file is read, or refused in one line."""
    rng = random.Random(seed)
    path = archive_of(tmp_path, tensor((2, 2), (1, 2)))
    content = path.read_bytes()
    pickled = zipfile.ZipFile(path).read("tiny/data.pkl")
    for _ in range(150):
        spoilt = bytearray(rng.choice((content, pickled)))
        whole = len(spoilt) == len(content)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        if whole:
            path.write_bytes(spoilt)
        else:
            write_pickle_archive(path, bytes(spoilt), _0=FOUR)
        try:
            read_tensors(path)
        except SourceError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - it may also be read


# --- files that hold something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"epoch": 3, "w": torch.zeros(1)}, "epoch is not a tensor but int"),
        ({"w": torch.zeros(1).expand(9)}, "w has shape [9], more than its stored numbers fill"),
        ({"w": torch.eye(3).to_sparse()}, "w is not a plain tensor"),
        ({"w": torch.zeros(3, device="meta")}, "w is not a plain tensor"),
        ({"state_dict": {"module.w": "x"}}, "w is not a tensor but str"),
    ],
)
def test_a_file_without_plain_tensors_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    """What is there instead is said."""
    torch.save(content, tmp_path / "w.pt")
    assert message in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer: run `git lfs pull`"),
        (b"<!DOCTYPE html>", "download it again"),
    ],
)
def test_a_file_that_holds_no_weights_is_told_apart(content: bytes, message: str, tmp_path: Path) -> None:
    """What it is, and what to do."""
    (tmp_path / "w.pt").write_bytes(content)
    assert message in refusal(tmp_path / "w.pt")


def test_another_zip_file_is_refused(tmp_path: Path) -> None:
    """A zip file alone is not torch's."""
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip file, but not one that torch wrote" in refusal(tmp_path / "w.pt")


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    """Nothing there, or a folder."""
    assert refusal(tmp_path / "no").endswith("is missing")
    assert "cannot be read" in refusal(tmp_path)


def test_the_kind_follows_from_the_content(tmp_path: Path) -> None:
    """Not from the name."""
    write_safetensors(tmp_path / "w.pt")
    assert weights_format(tmp_path / "w.pt") is WeightsFormat.SAFETENSORS
