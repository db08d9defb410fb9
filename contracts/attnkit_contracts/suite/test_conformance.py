"""Every check on every variant asked for: ``pytest --pyargs attnkit_contracts``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from attnkit_contracts.pytest_plugin import parametrize

if TYPE_CHECKING:
    from attnkit_contracts.running.instance import Instance


@parametrize()
def test_conformance(instance: Instance) -> None:
    record = instance.run()
    if record.status == "unsupported":
        pytest.skip(record.reason)
    record.raise_for_status()
