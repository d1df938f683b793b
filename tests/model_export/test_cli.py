import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from model_export.cli import main
from service.model.manifest import IMAGE_ENCODER, MANIFEST
from tests.model_export.conftest import Exported
from tests.support.tiny_run import write_tiny_run

# An export takes some seconds, and many more on a busy machine.
pytestmark = pytest.mark.timeout(600)


def anyclass_export(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "model_export.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
    )


def in_this_process(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line where torch is imported already, which takes longer than most commands."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setenv("COLUMNS", "120")
        patch.setenv("NO_COLOR", "1")
        patch.setattr(sys, "argv", ["anyclass-export", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def error_of(done: "subprocess.CompletedProcess[str]", code: int = 2) -> str:
    """Return the one line on stderr of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_help_names_the_commands_without_loading_torch() -> None:
    """Help is quick: it imports neither torch nor onnx nor the runtime."""
    done = anyclass_export("--help")
    assert 0 == done.returncode
    assert all(command in done.stdout for command in ("train", "export", "verify"))

    code = "import sys, model_export.cli; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == loaded.stdout.strip()


def test_help_calls_what_it_takes_by_one_name() -> None:
    """Arguments are in capitals in usage and text; brackets are shown, and not taken for a style."""
    usages = {"train": "{RECIPE}", "average": "{RUN}...", "export": "{SOURCE} {OUT}", "verify": "{BUNDLE}"}
    for command, arguments in usages.items():
        shown = anyclass_export(command, "--help").stdout
        assert f" {command} [OPTIONS] {arguments} " in shown
    shown = " ".join(anyclass_export("export", "--help").stdout.replace("│", " ").split())
    assert "A hub id (OWNER/NAME[@REVISION])" in shown
    assert "[default: follows from the source]" in shown


@pytest.mark.parametrize("command", [("train", "recipe.toml"), ("evaluate", "bundle", "--data", "pictures")])
def test_threads_are_at_least_one(command: tuple[str, ...]) -> None:
    """On a machine that others use, one thread is often fastest; none is refused before anything is read."""
    done = anyclass_export(*command, "--threads", "0")
    assert (2, True) == (done.returncode, "Invalid value for '--threads'" in done.stderr)


def test_export_then_verify(tmp_path: Path) -> None:
    """The whole way: a run becomes a bundle, both commands show what they measured, and a second export asks."""
    run, out = write_tiny_run(tmp_path / "run"), tmp_path / "bundle"

    done = anyclass_export("export", run, out)
    assert 0 == done.returncode, done.stderr
    assert "" == done.stderr
    for shown in ("tiny-residual-conv", "image_encoder.onnx", "text_encoder.onnx", "images, batch 7", "wrote"):
        assert shown in done.stdout

    done = in_this_process("verify", out, "--run", run)
    assert 0 == done.returncode, done.stderr
    assert "every check passed" in done.stdout

    assert "exists already" in error_of(in_this_process("export", run, out))


def test_a_bundle_that_fails_is_named_with_what_failed(exported_fp16: Exported, tmp_path: Path) -> None:
    """Exit code 1, a table, and a line that names the bundle and the checks."""
    bundle = Path(shutil.copytree(exported_fp16.bundle, tmp_path / "bundle"))
    (bundle / IMAGE_ENCODER).write_bytes(b"")

    done = in_this_process("verify", bundle)

    assert 1 == done.returncode
    assert "FAILED" in done.stdout
    assert f"{bundle}: failed: files" in done.stdout
    assert "" == done.stderr


def test_wrong_input_is_one_line_and_exit_code_2(exported_fp16: Exported, tmp_path: Path) -> None:
    """A wrong path, a broken run or a missing provider shows no traceback."""
    assert "is not a folder" in error_of(in_this_process("verify", tmp_path / "no"))
    assert "neither a file or folder nor a hub id" in error_of(
        in_this_process("export", tmp_path / "no", tmp_path / "out")
    )
    for provider in ("tensorrt", "abacus"):
        assert provider in error_of(in_this_process("verify", exported_fp16.bundle, "--provider", provider))

    run = write_tiny_run(tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"no")
    assert "model.safetensors" in error_of(in_this_process("export", run, tmp_path / "out"))
    assert ["run"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_missing_recipe_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """`train` shows errors of the training code in the same way."""
    assert "no.toml" in error_of(in_this_process("train", tmp_path / "no.toml", "--out", tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "named", "code"), [("torch", "-e '.[train]'", 3), ("onnxruntime", "the extra cpu", 2)]
)
def test_a_missing_package_names_the_extra(
    exported_fp16: Exported, tmp_path: Path, name: str, named: str, code: int
) -> None:
    """Without torch or a runtime, the error names the package to install; an exit code identifies missing torch."""
    command = ["export", str(exported_fp16.run), str(tmp_path / "out")]
    program = (
        f"import sys; sys.modules[{name!r}] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    said = error_of(done, code)
    assert named in said
    assert "docs/install.md" in said


def test_a_source_that_is_not_there_needs_no_torch(tmp_path: Path) -> None:
    """A missing source is reported without asking for torch, which would not help."""
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "export", "./nope", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "error: nope: is neither a file or folder nor a hub id" in error_of(done, 2)


def test_only_the_exit_code_reports_a_missing_package_to_an_installer(exported_fp16: Exported, tmp_path: Path) -> None:
    """`make run` tries without torch first: missing torch is expected there, so no error is printed."""
    command = ["export", str(exported_fp16.run), str(tmp_path / "out")]
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )
    environment = os.environ | {"ANYCLASS_EXPORT_INSTALLS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False, env=environment
    )
    assert (3, "", "") == (done.returncode, done.stdout, done.stderr)


def test_a_manifest_is_all_that_force_replaces(exported_fp16: Exported, tmp_path: Path) -> None:
    """--force on a folder that is no bundle is refused before anything is computed."""
    (tmp_path / "keep").write_text("precious")
    assert "is not a bundle" in error_of(in_this_process("export", exported_fp16.run, tmp_path, "--force"))
    assert not (tmp_path / MANIFEST).exists()
    assert "precious" == (tmp_path / "keep").read_text()


def test_averaging_writes_a_run_and_says_so(tmp_path: Path) -> None:
    """One line on success; shares that are no numbers are one line and exit code 2."""
    runs = [write_tiny_run(tmp_path / str(seed), seed=seed) for seed in (1, 2)]

    done = in_this_process("average", *runs, "--out", tmp_path / "mean", "--shares", "1,3")
    assert (0, f"wrote {tmp_path / 'mean'}: the mean of 2 runs\n") == (done.returncode, done.stdout)

    wrong = in_this_process("average", *runs, "--out", tmp_path / "other", "--shares", "1,many")
    assert "error: --shares 1,many: is not a list of numbers such as 1,1,2" == error_of(wrong)
