"""What was found out about a failure: the named mistakes that explain it, or what was seen."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from attnkit.frozen import Frozen


class Explaining(Frozen):
    """A named mistake that explains a failure; see `definitions.mistakes`."""

    name: str
    statement: str = Field(description='completes "equals the definition with ..."')


class Diagnosis(Frozen):
    """Why a failure is one; its text says it."""

    mistakes: tuple[Explaining, ...] = Field(
        default=(), description="none, one, or several that no call tells apart"
    )
    in_float32: bool = Field(
        default=False, description="the output of float64 is only as good as one of float32"
    )
    seen: str = Field(default="", description="what was seen, where no mistake explains it")
    alike: bool = Field(
        default=False, description="what is seen so in other checks is the same fault"
    )
    written: tuple[str, ...] = Field(default=(), description="inputs that are written to, besides")

    @property
    def is_named(self) -> bool:
        """Whether what is wrong has a name."""
        return bool(self.mistakes) or self.in_float32

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the mistakes."""
        return tuple(each.name for each in self.mistakes)

    def __bool__(self) -> bool:
        """Return whether there is anything to say."""
        return bool(str(self))

    def __str__(self) -> str:
        """Say it in a sentence."""
        besides = f"; {' and '.join(self.written)} is written to, besides" if self.written else ""
        return self._told() + besides

    def _told(self) -> str:
        if not self.is_named:
            return self.seen
        several = ", or with ".join(f"{each.statement} ({each.name})" for each in self.mistakes)
        told = [f"with {several}"] if self.mistakes else []
        told += ["computed in float32 although inputs are float64"] if self.in_float32 else []
        alike = "; no call tells these apart" if len(self.mistakes) > 1 else ""
        return f"equals the definition {', '.join(told)}{alike}"


NOTHING = Diagnosis()
"""Of what nobody looked into, or nothing was found about."""


@dataclass(frozen=True)
class Explanation:
    """What a record says about a failure.

    Attributes:
        diagnosis: Which named mistake explains it, or what was seen.
        smallest: The smallest call that was found to show it.
        elements: Some wrong elements, expected and got.
        script: Python that shows it without the suite; empty where that is not possible.
    """

    diagnosis: Diagnosis = NOTHING
    smallest: str = ""
    elements: str = ""
    script: str = ""
