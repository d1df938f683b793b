"""Find out whether OpenVINO is installed, which exists for x86-64 only."""

from importlib.util import find_spec

import pytest

OPENVINO_RUNS = find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not OPENVINO_RUNS, reason="OpenVINO is not installed")
