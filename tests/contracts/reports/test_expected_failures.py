"""Known failures: the file, its mistakes, and what the three doors make of it."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner
from warm_process import run

import attnkit_contracts
from attnkit.errors import ArgumentError
from attnkit_contracts import ExpectedFailure
from attnkit_contracts.cli.app import app
from attnkit_contracts.reports.expectations import by_id, read_expected
from attnkit_contracts.running.plan import must_exist

if TYPE_CHECKING:
    from pathlib import Path

ID = "self_attention/plain/float32/cpu/A4.row_sums"
OTHER = "self_attention/plain/float32/cpu/S1.output"
DAY = datetime.date(2026, 11, 24)

ENTRY = {"id": ID, "reason": "sums in float16", "issue": "https://example.org/acme/issues/12"}

TOML = f"""
[[expected_failure]]
id = "{ID}"
reason = "sums in float16"
issue = "https://example.org/acme/issues/12"
expires = 2026-11-24
"""


def written(folder: Path, text: str, name: str = "known.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# the file


def test_a_list_is_read_from_toml(tmp_path: Path) -> None:
    assert read_expected(written(tmp_path, TOML)) == (ExpectedFailure(**ENTRY, expires=DAY),)


def test_the_same_list_is_read_from_json(tmp_path: Path) -> None:
    text = json.dumps({"expected_failure": [{**ENTRY, "expires": "2026-11-24"}]})

    assert read_expected(written(tmp_path, text, "known.json")) == read_expected(
        written(tmp_path, TOML)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[expected_failure]]\nid = "a"', "entry 1: reason: Field required"),
        ('[[expected_failure]]\nid = "a"\nreason = " "', "entry 1: reason: String should have"),
        ('[[expected_failure]]\nid = "a"\nreason = "b"\nissue = "12"', "entry 1: issue: "),
        ('[[expected_failure]]\nid = "a"\nreason = "b"\nexpires = "soon"', "entry 1: expires: "),
        ('[[expected_failure]]\nid = "a"\nreason = "b"\nurl = "c"', "entry 1: url: Extra inputs"),
        ('[[xfail]]\nid = "a"\nreason = "b"', "one list named 'expected_failure'"),
        ("expected_failure = 3", "must be a list, got int"),
        ("[[expected_failure]", "cannot read expected failures from"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_where(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_expected(written(tmp_path, text))

    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "known.yaml"])
def test_a_file_that_cannot_be_read_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=name):
        read_expected(tmp_path / name)


# the list


def test_an_id_that_is_listed_twice_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="listed twice"):
        by_id([ExpectedFailure(**ENTRY), ExpectedFailure(**ENTRY)])


def test_an_expected_failure_holds_until_the_end_of_its_last_day() -> None:
    assert by_id([ExpectedFailure(**ENTRY, expires=DAY)], today=DAY)


def test_one_that_has_expired_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="expired on 2026-11-24"):
        by_id([ExpectedFailure(**ENTRY, expires=DAY)], today=DAY + datetime.timedelta(1))


def test_an_unknown_id_is_an_error_that_names_the_nearest() -> None:
    planned = attnkit_contracts.plan("self_attention")

    with pytest.raises(ArgumentError, match="Did you mean 'self_attention/plain/float32/cpu/A4"):
        must_exist([f"{ID}_"], planned)


def test_an_id_of_the_variant_that_this_run_leaves_out_is_known() -> None:
    planned = attnkit_contracts.plan("self_attention", dtypes=["float64"])

    must_exist([ID], planned)


# the doors


def test_a_record_keeps_why_it_was_expected_to_fail() -> None:
    known = ExpectedFailure(**ENTRY)
    report = attnkit_contracts.check(
        "self_attention",
        dtypes=["float32"],
        implementations=["plain"],
        expected_failures=[known],
    )
    (record,) = report.failures()

    assert (record.id, record.status, record.expected) == (ID, "xpass", known)


def check(path: Path, *options: str) -> tuple[int, str]:
    narrow = ["--dtype", "float32", "--implementation", "plain"]
    asked = ["check", "self_attention", *narrow, "--expected-failures", str(path), *options]
    done = CliRunner().invoke(app, asked)
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command_is_red_where_a_known_failure_passes(tmp_path: Path) -> None:
    text = TOML.replace("2026-11-24", "9999-12-31")
    code, told = check(written(tmp_path, text))

    assert code == 1
    assert f"{ID}: xpass" in told


def test_the_command_refuses_an_expired_list(tmp_path: Path) -> None:
    code, told = check(written(tmp_path, TOML.replace("2026", "2020")))

    assert code != 0
    assert "expired on 2020-11-24" in told


AUTHORS_TEST = """
from dataclasses import replace
from attnkit_contracts import parametrize
from attnkit_plugins.softmax.self_attention import VARIANT
from attnkit_plugins.softmax.self_attention.plain import attend

def doubled(*tensors, **given):
    return 2 * attend(*tensors, **given)

one = replace(VARIANT.implementations[1], name="doubled", function=doubled)
WRONG = replace(VARIANT, name="doubling", implementations=(VARIANT.implementations[0], one))
SUBJECT = "doubling/doubled/float32/cpu/"

@parametrize(WRONG, expected_failures={SUBJECT + "A4.row_sums": "known", SUBJECT + LISTED: "why"})
def test_conformance(instance):
    instance.run().raise_for_status()
"""


def run_pytest(folder: Path, listed: str, *options: str) -> str:
    (folder / "test_mine.py").write_text(f"LISTED = {listed!r}\n{AUTHORS_TEST}")
    command = ["-m", "pytest", "-q", "-rxXf", "-p", "no:cacheprovider", "test_mine.py"]
    chosen = "doubling/doubled/float32/cpu and (A4.row or S1.output)"
    return run(*command, "-k", chosen.replace("/", " and "), *options, cwd=folder).stdout


def test_pytest_shows_a_known_failure_as_xfail_and_one_that_passes_as_failed(
    tmp_path: Path,
) -> None:
    told = run_pytest(tmp_path, "S1.output")

    assert "[doubling/doubled/float32/cpu/A4.row_sums] - known" in told
    assert "1 failed" in told
    assert "1 xfailed" in told
    assert "XPASS(strict)" in told


def test_pytest_refuses_an_unknown_id(tmp_path: Path) -> None:
    told = run_pytest(tmp_path, "S1.outputs")

    assert "there is no check instance 'doubling/doubled/float32/cpu/S1.outputs'" in told


def test_pytest_takes_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, TOML.replace("2026", "2020"))
    told = run_pytest(tmp_path, "S1.output", f"--attnkit-expected-failures={path}")

    assert "expired on 2020-11-24" in told
