"""What the settings of the manifests allow the process to hold, beside the memory limit of its pod."""

from typing import Final

import pytest

from service.api.request.archive import MAX_ARCHIVES_IN_WORK
from service.settings import ENV_PREFIX, Settings
from tests.deploy.test_kubernetes import container, one, why_not_rendered

MIB: Final = 2**20
PROCESS_MIB: Final = 250
"""Resident, the demo model warm and nothing asked of it."""
DIM: Final = 512
"""Of a model of the usual size; the demo's is smaller."""
BYTES_PER_PIXEL: Final = 4

pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


def test_all_that_is_bounded_fits_into_the_pod_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies, archives, label sets, caches and pixels at their limits do not have the pod killed."""
    for name, value in one("cpu", "ConfigMap", "anyclass-settings")["data"].items():
        assert name.startswith(ENV_PREFIX)
        monkeypatch.setenv(name, value)
    settings = Settings()
    held = (
        PROCESS_MIB
        + settings.max_total_body_bytes / MIB
        + MAX_ARCHIVES_IN_WORK * settings.max_body_bytes / MIB
        + settings.label_sets_mib
        + settings.cache_matrices_mib
        + settings.cache_max_entries * (4 * DIM + 200) / MIB
        # As many again are being decoded at most.
        + 2 * settings.max_pixels * BYTES_PER_PIXEL / MIB
    )
    limit = container("cpu", "anyclass")["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert held < int(limit.removesuffix("Mi"))
