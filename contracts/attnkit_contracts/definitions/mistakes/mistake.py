"""What a named mistake is: a float64 definition with one deliberate error.

A wrong output that equals such a definition, and not the right one, is explained by it. The
libraries are `mistakes_softmax`, `mistakes_recurrence` and `mistakes_mixture`; `diagnosis` asks
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Definition = TypeVar("Definition")


@dataclass(frozen=True)
class Mistake(Generic[Definition]):
    """A mistake that people make.

    Attributes:
        name: A short word for it, never reused.
        statement: Completes "equals the definition with ...".
        definitions: What it can look like, one or several; each has only this error.
    """

    name: str
    statement: str
    definitions: tuple[Definition, ...]
