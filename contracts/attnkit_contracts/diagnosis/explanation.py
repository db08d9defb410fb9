"""What is found out about a failure; made by `diagnosis.explain`, which imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from attnkit_contracts.reports.diagnosis import NOTHING, Diagnosis


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
