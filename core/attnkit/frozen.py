"""`Frozen`, the base of configurations, promises, receipts and reports."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A record that never changes and takes no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
