"""`Frozen`, the base of configurations, promises, receipts, reports; `Same`, any value as key."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A record that never changes and takes no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Same(NamedTuple):
    """A value, compared by identity: what strangers give need neither compare nor have a hash."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
