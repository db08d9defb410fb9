"""The conformance suite: what every variant must do, as checks that anybody can run.

    report = attnkit_contracts.check("flash")            # in Python
    pytest --pyargs attnkit_contracts --attnkit-variant flash
    attnkit check flash                                  # on the command line

A check is one small function in `attnkit_contracts.checks`; `catalogue` says what a check is,
`subjects` what it is run on, `runner` how, `records` what comes out. Importing this package
loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnkit_contracts.catalogue import Check, all_checks
    from attnkit_contracts.certificates.certificate import Certificate, certify
    from attnkit_contracts.foreign.functions import adapt
    from attnkit_contracts.foreign.layers import adapt_layer
    from attnkit_contracts.pytest_plugin import parametrize
    from attnkit_contracts.reports.comparison import compare
    from attnkit_contracts.reports.expectations import ExpectedFailure
    from attnkit_contracts.reports.records import Record, Report
    from attnkit_contracts.running.plan import plan
    from attnkit_contracts.running.runner import check, rerun

_HOME = {
    "Certificate": "certificates.certificate",
    "Check": "catalogue",
    "ExpectedFailure": "reports.expectations",
    "Record": "reports.records",
    "Report": "reports.records",
    "adapt": "foreign.functions",
    "adapt_layer": "foreign.layers",
    "all_checks": "catalogue",
    "certify": "certificates.certificate",
    "check": "running.runner",
    "compare": "reports.comparison",
    "parametrize": "pytest_plugin",
    "plan": "running.plan",
    "rerun": "running.runner",
}

__all__ = [
    "Certificate",
    "Check",
    "ExpectedFailure",
    "Record",
    "Report",
    "adapt",
    "adapt_layer",
    "all_checks",
    "certify",
    "check",
    "compare",
    "parametrize",
    "plan",
    "rerun",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module, on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'attnkit_contracts' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"attnkit_contracts.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
