"""What the tests of recurrences in models are run with."""

from __future__ import annotations

from typing import Any

import pytest
from recurrent_swaps import PLANS


@pytest.fixture(params=PLANS)
def plan(request: Any) -> Any:
    return PLANS[request.param]
