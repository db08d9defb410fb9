"""The formats that a report is written in, by the suffix of its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.errors import ArgumentError
from attnkit_contracts.reports.records import Report

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {
    ".json": Report.to_json,
    ".md": Report.to_markdown,
    ".xml": Report.to_junit,
    ".html": Report.to_html,
}
"""How a report is written, by suffix."""


def write(report: Report, path: Path) -> None:
    """Write a report to a file; see `Report.write`."""
    if path.suffix not in FORMATS:
        raise ArgumentError(f"a report must end in {', '.join(FORMATS)}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FORMATS[path.suffix](report), encoding="utf-8")
