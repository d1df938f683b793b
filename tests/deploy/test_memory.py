"""Memory that the settings of the manifests allow, compared with the limit of the pod."""

from typing import Final

import pytest

from service.api.request.archive import MAX_ARCHIVES_IN_WORK
from service.settings import ENV_PREFIX, Settings
from tests.deploy.test_kubernetes import container, one, why_not_rendered

MIB: Final = 2**20
PROCESS_MIB: Final = 250
"""Resident memory with the demo model warm, before any request."""
DIM: Final = 512
"""Dimension of usual models; the demo model's is smaller."""
BYTES_PER_PIXEL: Final = 4

pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


def test_all_limits_fit_into_the_pod_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies, archives, label sets, caches and pixels at their limits stay below the pod's limit."""
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
        # All images being decoded have at most twice the pixels of one.
        + 2 * settings.max_pixels * BYTES_PER_PIXEL / MIB
    )
    limit = container("cpu", "anyclass")["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert held < int(limit.removesuffix("Mi"))
