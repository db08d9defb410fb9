"""A certificate as a small picture for a README: tier, and how many checks passed of how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit_contracts.reports.html import environment

if TYPE_CHECKING:
    from attnkit_contracts.certificates.certificate import Certificate

PIXELS = 6.6
"""Mean width of a character; ``textLength`` makes the text exactly as wide as this says."""

MARGIN = 10


def to_svg(certificate: Certificate) -> str:
    """Return the badge; green where all passed, amber where failures are known."""
    passed = certificate.counts.get("passed", 0)
    known = len(certificate.known_failures)
    label = f"attnkit {certificate.attnkit}"
    text = f"{certificate.variant} {passed}/{certificate.expected_count} {certificate.tier}"
    if certificate.device != "cpu":
        text += f" {certificate.device}"
    if known:
        text += f", {known} known failure{'s' if known > 1 else ''}"
    left, right = _width(label), _width(text)
    return (
        environment()
        .get_template("badge.svg.j2")
        .render(
            label=label,
            text=text,
            left=left,
            right=right,
            margin=MARGIN,
            colour="#7a5200" if known or certificate.advice else "#17692f",
            title=f"{label}: {text}, checked {certificate.made.date()}",
        )
    )


def _width(text: str) -> int:
    return round(len(text) * PIXELS) + 2 * MARGIN
