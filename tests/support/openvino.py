"""Whether OpenVINO is installed: it is there for x86-64 alone."""

from importlib.util import find_spec

import pytest

OPENVINO_RUNS = find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not OPENVINO_RUNS, reason="OpenVINO is not installed")
