"""The conformance suite: what every variant must do, as checks that anybody can run.

    report = attnkit_contracts.check("flash")            # in Python
    pytest --pyargs attnkit_contracts --attnkit-variant flash
    attnkit check flash                                  # on the command line

Start with `catalogue`, what a check is. A check is one small function in `checks`; `subjects` is
what it is run on, `running` how, `reports` what comes out. Importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit_contracts.catalogue import Check as Check
    from attnkit_contracts.catalogue import all_checks as all_checks
    from attnkit_contracts.certificates.certificate import Certificate as Certificate
    from attnkit_contracts.certificates.certificate import certify as certify
    from attnkit_contracts.diagnosis.functions import FunctionDiagnosis as FunctionDiagnosis
    from attnkit_contracts.diagnosis.functions import diagnose as diagnose
    from attnkit_contracts.foreign.conventions import Convention as Convention
    from attnkit_contracts.foreign.conventions import LayerConvention as LayerConvention
    from attnkit_contracts.foreign.functions import adapt as adapt
    from attnkit_contracts.foreign.layers import adapt_layer as adapt_layer
    from attnkit_contracts.pytest_plugin import parametrize as parametrize
    from attnkit_contracts.reports.comparison import compare as compare
    from attnkit_contracts.reports.expectations import ExpectedFailure as ExpectedFailure
    from attnkit_contracts.reports.records import Record as Record
    from attnkit_contracts.reports.records import Report as Report
    from attnkit_contracts.running.plan import plan as plan
    from attnkit_contracts.running.proofs import prove as prove
    from attnkit_contracts.running.runner import check as check
    from attnkit_contracts.running.runner import rerun as rerun
    from attnkit_contracts.subjects.families import SuiteFamily as SuiteFamily
else:
    __getattr__, __dir__, __all__ = face(
        __name__,
        {
            "attnkit_contracts.catalogue": "Check all_checks",
            "attnkit_contracts.certificates.certificate": "Certificate certify",
            "attnkit_contracts.diagnosis.functions": "FunctionDiagnosis diagnose",
            "attnkit_contracts.foreign.conventions": "Convention LayerConvention",
            "attnkit_contracts.foreign.functions": "adapt",
            "attnkit_contracts.foreign.layers": "adapt_layer",
            "attnkit_contracts.pytest_plugin": "parametrize",
            "attnkit_contracts.reports.comparison": "compare",
            "attnkit_contracts.reports.expectations": "ExpectedFailure",
            "attnkit_contracts.reports.records": "Record Report",
            "attnkit_contracts.running.plan": "plan",
            "attnkit_contracts.running.proofs": "prove",
            "attnkit_contracts.running.runner": "check rerun",
            "attnkit_contracts.subjects.families": "SuiteFamily",
        },
    )
