"""What changed between two reports, and whether it got worse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from attnkit_contracts import compare
from attnkit_contracts.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

ID = "acme/fast/float32/cpu/A4.row_sums"

STEPS = [
    ("passed", "failed", "broken", True),
    ("passed", "error", "broken", True),
    ("passed", "inconclusive", "broken", True),
    # a list of known failures explains a failure, it does not undo it
    ("passed", "xfail", "broken", True),
    ("xfail", "xpass", "broken", True),
    ("unsupported", "failed", "broken", True),
    ("passed", "unsupported", "gone", True),
    ("passed", "skipped_env", "gone", True),
    ("passed", "", "gone", True),
    ("failed", "", "gone", False),
    ("failed", "passed", "fixed", False),
    ("xpass", "passed", "fixed", False),
    ("xfail", "passed", "fixed", False),
    ("unsupported", "passed", "fixed", False),
    ("failed", "error", "changed", False),
    ("failed", "xfail", "changed", False),
    ("unsupported", "skipped_env", "changed", False),
    ("", "passed", "appeared", False),
    ("", "unsupported", "appeared", False),
    ("", "failed", "broken", True),
]


def reports(made: Any, *statuses: str) -> list[Any]:
    """One report per status, without the record where there is none."""
    kept = made.record("acme/fast/float32/cpu/S1.output")
    return [
        made.report(kept, *([made.record(ID, status=status)] if status else []))
        for status in statuses
    ]


@pytest.mark.parametrize(("before", "after", "kind", "is_worse"), STEPS)
def test_a_change_is_named(before: str, after: str, kind: str, is_worse: bool, made: Any) -> None:
    found = compare(*reports(made, before, after))

    assert [(each.id, each.kind) for each in found.changes] == [(ID, kind)]
    assert found.is_worse == is_worse


@pytest.mark.parametrize("status", ["passed", "failed", "unsupported", "xfail"])
def test_what_stays_is_no_change(status: str, made: Any) -> None:
    assert compare(*reports(made, status, status)).changes == ()


@pytest.mark.parametrize(
    ("before", "after", "drifts"),
    [(0.1, 0.5, True), (0.5, 0.1, True), (0.5, 0.6, False), (1e-6, 1e-3, False)],
)
def test_an_error_that_grows_within_its_limit_is_told_and_not_worse(
    before: float, after: float, drifts: bool, made: Any
) -> None:
    old, new = (made.report(made.record(ID, value=v, threshold=1.0)) for v in (before, after))
    found = compare(old, new)

    assert [each.kind for each in found.changes] == ["drifted"] * drifts
    assert not found.is_worse


def test_a_new_check_that_is_advisory_makes_nothing_worse(made: Any) -> None:
    kept = made.record("acme/fast/float32/cpu/S1.output")
    new = made.report(kept, made.record(ID, status="failed", advisory=True))

    assert not compare(made.report(kept), new).is_worse


def test_a_subject_that_lost_its_verdicts_makes_it_worse(made: Any) -> None:
    kept = made.record(ID)
    found = compare(made.report(kept), made.report(kept, missing=("acme/layer/float32/cpu",)))

    assert [each.id for each in found.changes] == ["acme/layer/float32/cpu"]
    assert found.is_worse


def test_the_worst_comes_first(made: Any) -> None:
    ids = [f"acme/fast/float32/cpu/S{i}.check" for i in range(3)]
    old = made.report(made.record(ids[0], status="failed"), made.record(ids[1]))
    new = made.report(
        made.record(ids[0]), made.record(ids[1], status="failed"), made.record(ids[2])
    )

    kinds = [each.kind for each in compare(old, new).changes]
    assert kinds == ["broken", "appeared", "fixed"]


# the command


@pytest.fixture
def run(made: Any, tmp_path: Path) -> Any:
    """Run the command on reports of one record each."""

    def runner(before: str, after: str, *options: str) -> Result:
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, report in zip(paths, reports(made, before, after), strict=True):
            report.write(path)
        return CliRunner().invoke(app, ["diff", *map(str, paths), *options])

    return runner


def test_diff_ends_with_1_where_something_got_worse(run: Any) -> None:
    done = run("passed", "failed")

    assert done.exit_code == 1
    assert f"broken: 1\n  {ID}: passed -> failed: 5 of 2 allowed" in done.output


def test_diff_ends_with_0_where_nothing_got_worse(run: Any) -> None:
    assert run("failed", "passed").exit_code == 0


def test_diff_as_json_can_be_read(run: Any) -> None:
    (change,) = json.loads(run("passed", "failed", "--json").output)["changes"]

    assert (change["kind"], change["before"], change["after"]) == ("broken", "passed", "failed")


def test_diff_refuses_what_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"records": []}')
    done = CliRunner().invoke(app, ["diff", str(path), str(path)])

    assert done.exit_code == 2
    assert "is no report: header: Field required" in done.output
