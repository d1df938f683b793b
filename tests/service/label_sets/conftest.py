from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.state.protocol import StateStore
from tests.support.state_stores import KINDS, state_stores


@pytest.fixture(params=KINDS)
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    """A state store that replicas share."""
    async with state_stores(request.param, tmp_path) as make:
        yield make()
