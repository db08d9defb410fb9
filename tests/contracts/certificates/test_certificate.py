"""A certificate is of a whole green run, and a badge of a certificate that still holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import attnkit
import attnkit_contracts
from attnkit_contracts import Certificate, ExpectedFailure, certify
from attnkit_contracts.certificates import evidence
from attnkit_contracts.certificates.badge import to_svg
from attnkit_contracts.certificates.certificate import CertificateRefusedError
from attnkit_contracts.cli.app import app
from attnkit_contracts.reports.records import Proof

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts import Record, Report

NAME = "moe"


@pytest.fixture(scope="module")
def variant() -> Variant:
    return attnkit.get_variant(NAME)


@pytest.fixture(scope="module")
def report(made: Any) -> Report:
    """A whole run of the fast tier in which everything has passed."""
    found: Report = made.report(
        *(
            made.record(each.id, value=0.5, threshold=2.0, unit="probe units")
            for each in attnkit_contracts.plan(NAME)
        )
    )
    return found


def changed(report: Report, **header: Any) -> Report:
    return report.model_copy(update={"header": report.header.model_copy(update=header)})


def with_record(report: Report, made: Any, check: str, **given: Any) -> Report:
    """Replace the record of one check on the layer."""

    def replaced(record: Record) -> Record:
        is_it = (record.check, record.implementation) == (check, "layer")
        found: Record = made.record(record.id, **given) if is_it else record
        return found

    return report.model_copy(update={"records": tuple(map(replaced, report.records))})


def refused(variant: Variant, report: Report) -> str:
    with pytest.raises(CertificateRefusedError) as caught:
        certify(variant, report)
    return str(caught.value)


def test_a_certificate_says_what_was_promised_run_and_measured(
    variant: Variant, report: Report
) -> None:
    found = certify(variant, report)

    assert (found.variant, found.owner, found.tier, found.device) == (
        NAME,
        "attnkit",
        "fast",
        "cpu",
    )
    assert found.promises == variant.promises
    assert set(found.implementations) == {each.name for each in variant.implementations}
    assert found.executed_count == found.expected_count == len(report.records)
    assert set(found.checks) == {record.check for record in report.records}
    assert {each.value for each in found.measurements} == {0.5}


def test_a_certificate_survives_json(variant: Variant, report: Report) -> None:
    found = certify(variant, report)

    assert Certificate.from_json(found.to_json()) == found


def test_a_certificate_names_the_devices_that_it_is_not_about(
    variant: Variant, report: Report
) -> None:
    promises = variant.promises.model_copy(update={"devices": ("cpu", "cuda")})

    assert certify(replace(variant, promises=promises), report).not_covered == ("cuda",)


def test_a_certificate_holds_the_hash_of_every_file_of_the_plugin(
    variant: Variant, report: Report
) -> None:
    import attnkit_plugins.feedforward.moe as package

    found = certify(variant, report).files
    paths = sorted(Path(package.__file__).parent.glob("*.py"))

    assert len(paths) >= 3
    for path in paths:
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found[f"attnkit_plugins/feedforward/moe/{path.name}"] == expected


# refused


def test_none_if_something_required_has_no_verdict(variant: Variant, report: Report) -> None:
    said = refused(variant, changed(report, required_missing=("moe/layer/float32/cpu/S1.output",)))

    assert "required, and without a verdict: moe/layer/float32/cpu/S1.output" in said


def test_none_if_something_failed(variant: Variant, report: Report, made: Any) -> None:
    said = refused(variant, with_record(report, made, "S1.output", status="failed"))

    assert "not passed: moe/layer/float32/cpu/S1.output: failed" in said


def test_none_if_part_of_the_plan_was_left_out(variant: Variant, report: Report) -> None:
    some = tuple(record for record in report.records if record.dtype == "float32")
    said = refused(variant, report.model_copy(update={"records": some}))

    assert "not run: moe/reference/float64/cpu/S1.output" in said
    assert " more" in said


def test_none_if_what_is_required_is_only_excused(
    variant: Variant, report: Report, made: Any
) -> None:
    known = ExpectedFailure(id="x", reason="issue 12")
    said = refused(variant, with_record(report, made, "S1.output", status="xfail", expected=known))

    assert "required, and expected to fail: moe/layer/float32/cpu/S1.output" in said


def test_none_if_a_wrong_variant_survived_its_check(variant: Variant, report: Report) -> None:
    proof = Proof(check="X1.acme", wrong="acme_bad", caught_by="")
    said = refused(variant, report.model_copy(update={"proofs": (proof,)}))

    assert "a wrong variant that its check does not catch: X1.acme on acme_bad" in said


def test_none_if_an_extension_failed(variant: Variant, report: Report) -> None:
    said = refused(variant, changed(report, broken_extensions=("extension 'acme'",)))

    assert "an extension that failed, with its checks: extension 'acme'" in said


def test_none_from_the_report_of_another_suite(variant: Variant, report: Report) -> None:
    assert "made by attnkit 0.0.9" in refused(variant, changed(report, attnkit="0.0.9"))


def test_none_from_a_report_on_several(variant: Variant, report: Report) -> None:
    assert "check this variant alone" in refused(variant, changed(report, variants=(NAME, "flash")))


def test_none_for_what_no_distribution_offers(right: Variant, report: Report) -> None:
    with attnkit.register(right):
        assert "no installed distribution offers it" in refused(right, report)


def test_a_run_of_one_dtype_gives_no_certificate_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "moe.json"
    options = ["--dtype", "float32", "--implementation", "loop", "--certificate", str(path)]
    done = CliRunner().invoke(app, ["check", NAME, *options])

    assert done.exit_code == 1
    assert "no certificate for 'moe':\n  not run: moe/reference/float64/cpu/" in done.output
    assert not path.exists()


def test_a_certificate_is_of_one_variant(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", "moe", "flash", "--certificate", "both.json"])

    assert done.exit_code == 2


# the badge


def test_a_badge_says_how_many_of_how_many(variant: Variant, report: Report) -> None:
    count = len(report.records)

    assert f">moe {count}/{count} fast</text>" in to_svg(certify(variant, report))


def test_a_badge_shows_known_failures_in_another_colour(
    variant: Variant, report: Report, made: Any
) -> None:
    known = ExpectedFailure(id="x", reason="issue 12")
    excused = with_record(report, made, "S3.determinism", status="xfail", expected=known)
    good, bad = (to_svg(certify(variant, each)) for each in (report, excused))

    assert "known failure" in bad
    assert ("#17692f" in good, "#17692f" in bad) == (True, False)


@pytest.fixture
def badge(variant: Variant, report: Report, tmp_path: Path) -> Any:
    """Run the command on a certificate with some fields changed."""

    def run(**given: Any) -> Any:
        path = tmp_path / "moe.json"
        path.write_text(certify(variant, report).model_copy(update=given).to_json())
        return CliRunner().invoke(app, ["badge", str(path)])

    return run


def test_the_badge_of_a_certificate_is_printed(badge: Any) -> None:
    done = badge()

    assert done.exit_code == 0
    assert done.output.startswith("<svg ")


def test_no_badge_if_a_file_changed(badge: Any, variant: Variant) -> None:
    files = evidence.files(variant) | {"attnkit_plugins/feedforward/moe/__init__.py": "0" * 64}
    done = badge(files=files)

    assert done.exit_code == 2
    assert (
        "files changed since it was made: attnkit_plugins/feedforward/moe/__init__.py"
        in done.output
    )


def test_no_badge_from_another_major_version_of_the_suite(badge: Any) -> None:
    assert "it was made by the suite of attnkit 7.0.0" in badge(attnkit="7.0.0").output
