import subprocess
import sys
from pathlib import Path

from service.model.engine import provider_table

_ONE_ROW = '    "npu": Row("CPUExecutionProvider", "the extra cpu", trusted=True),\n'
_PROGRAM = """
import importlib, sys, types
name = "service.model.engine.provider_table"
table = sys.modules[name] = types.ModuleType(name)
exec(sys.stdin.read(), table.__dict__)

from service.cli.commands import main
from service.model.engine.providers import resolve
from service.settings import Settings

assert "npu" == Settings(provider="npu").provider
assert ("npu", "CPUExecutionProvider") == (resolve("npu").name, resolve("npu").ort_name)
sys.argv = ["anyclass", "serve", "--provider", "npu", "--port", "-1"]
main()
"""


def test_one_row_adds_a_provider() -> None:
    """The settings, `resolve` and the command line accept it: the command then refuses only the port."""
    source = Path(provider_table.__file__).read_text("utf-8")
    head, table, rows = source.partition("TABLE: Final[Mapping[str, Row]] = {\n")
    program = [sys.executable, "-c", _PROGRAM]
    ended = subprocess.run(program, input=head + table + _ONE_ROW + rows, capture_output=True, text=True, check=False)
    assert 2 == ended.returncode
    assert "ANYCLASS_PORT" in ended.stderr
    assert "npu" not in ended.stderr
