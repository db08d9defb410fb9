"""The smallest wrong call, what is wrong with it, and the script that shows it."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from warm_process import run

import attnkit
import attnkit_contracts
from attnkit.masks.constructors import Sizes
from attnkit_contracts.diagnosis import fresh, scripts
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.inputs import cuts, layouts
from attnkit_contracts.inputs.calls import Call, mask_part
from attnkit_contracts.subjects.opener import subject_of
from attnkit_contracts.subjects.softmax import SoftmaxOperation

if TYPE_CHECKING:
    from pathlib import Path

    from attnkit.interface import Variant
    from attnkit_contracts.reports.records import Record

PARTS = ("window", "padding", "documents", "prefix", "dense", "blocks", "union")
EVERY = Sizes(3, 2, 20, 20)
LAYOUTS = [
    each for each in vars(layouts).values() if isinstance(each, layouts.Each | layouts.Packed)
]


def record_of(variant: Variant, check: str) -> Record:
    """Run the instances of one check on the wrong implementation, and return the first red one."""
    for each in attnkit_contracts.plan(
        variant, dtypes=["float32"], implementations=["wrong"], tier="standard"
    ):
        if each.check.id == check:
            record = each.run()
            if record.status != "passed":
                return record
    raise AssertionError("nothing failed")


def test_a_window_off_by_one_shrinks_to_one_query_and_two_keys(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_window_off_by_one"], "M4.window")

    assert record.smallest == (
        "query=(1, 1, 1, 1), key=(1, 1, 2, 1), value=(1, 1, 2, 1), mask=attnkit.sliding_window(1)"
    )


def test_a_lost_state_shrinks_to_one_token(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_recurrence_state_not_carried"], "T2.steps")

    assert record.smallest.startswith("query=(1, 1, 1, 1), key=(1, 1, 1, 1), value=(1, 1, 1, 1), ")


def test_a_leak_keeps_as_many_keys_as_it_needs(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_leak_at_one_position"], "M1.suffix_perturbation")

    assert "key=(1, 1, 151, 1)" in record.smallest


def test_wrong_elements_are_shown_with_their_places(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_missing_renormalisation"], "A4.row_sums")

    count, element = record.elements.splitlines()
    place, expected, got = re.fullmatch(r"(.*): expected (.*), got (.*)", element).groups()  # type: ignore[union-attr]  # it matches

    assert count == "1 of 1 elements of out are wrong"
    assert place == "out[0, 0, 0, 0]"
    assert float(got) == pytest.approx(0.999 * float(expected), rel=1e-6)


@pytest.mark.usefixtures("plugin")
def test_what_is_expected_is_of_the_call_in_the_script() -> None:
    import acme_wrong

    record = record_of(acme_wrong.ATTENTION, "A3.temperature")
    expected = record.elements.splitlines()[1].partition("expected ")[2].partition(",")[0]

    assert f"expected = torch.tensor([[[[{float(expected)}" in record.reproduction


def test_what_is_told_of_a_failure_is_in_its_error(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_scale_twice"], "A3.temperature")

    with pytest.raises(AssertionError, match=re.escape(str(record.diagnosis))):
        record.raise_for_status()


def test_the_search_ends_after_so_many_attempts() -> None:
    tried = 0

    def never(call: Call) -> bool:
        nonlocal tried
        tried += 1
        return tried == 1

    subject = _subject()
    call = subject.draw("long", length=500)
    assert shrinking.shrink(subject, call, never).describe() == call.describe()
    assert tried <= shrinking.ATTEMPTS


def test_the_search_ends_after_so_much_work_however_long_it_takes() -> None:
    tried = []

    def never(call: Call) -> bool:
        tried.append(call)
        return len(tried) == 1

    subject = _subject()
    shrinking.shrink(subject, subject.draw("longer", length=1000), never)

    # more than the first, and less than half of what small calls get
    assert 1 < len(tried) < shrinking.ATTEMPTS / 2
    assert sum(map(shrinking.work_of, tried[:-1])) < shrinking.WORK


def test_no_clock_is_read_to_find_the_smallest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> float:
        raise AssertionError("a clock was read")

    for name in ("monotonic", "perf_counter", "process_time", "thread_time", "time"):
        monkeypatch.setattr(time, name, stopped)
    subject = _subject()
    call = subject.draw("any", length=9)

    assert shrinking.shrink(subject, call, lambda _: True).tensors["query"].shape == (1, 1, 1, 1)


def test_a_fault_that_always_persists_shrinks_to_ones() -> None:
    subject = _subject()
    call = subject.draw("any", length=65, mask=subject.mask(Sizes(2, 2, 65, 65), causal=True))
    smallest = shrinking.shrink(subject, call, lambda _: True)

    assert smallest.describe() == (
        "query=(1, 1, 1, 1), key=(1, 1, 1, 1), value=(1, 1, 1, 1), mask=attnkit.full()"
    )


def _subject() -> SoftmaxOperation:
    (first,) = [
        each
        for each in attnkit_contracts.plan("flash", dtypes=["float32"], implementations=["auto"])
        if each.check.id == "A4.row_sums"
    ]
    subject = subject_of(first.target)
    assert isinstance(subject, SoftmaxOperation)
    return subject


@pytest.mark.parametrize("part", PARTS)
def test_the_mask_of_a_cut_call_is_the_cut_mask(part: str) -> None:
    mask = mask_part(part, EVERY, "cpu") & attnkit.causal()  # type: ignore[arg-type]  # one of PARTS
    whole = mask.to_bool(EVERY, torch.device("cpu")).expand(*EVERY)
    few = cuts.cut(_call(mask), 11, 11)
    sizes = Sizes(3, 2, 11, 11)

    assert torch.equal(
        few.mask.to_bool(sizes, torch.device("cpu")).expand(*sizes), whole[:, :, :11, :11]
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_mask_of_some_samples_is_theirs(part: str) -> None:
    mask = mask_part(part, EVERY, "cpu")  # type: ignore[arg-type]  # one of PARTS
    whole = mask.to_bool(EVERY, torch.device("cpu")).expand(*EVERY)
    few = cuts.samples(_call(mask), [2])
    sizes = Sizes(1, 2, 20, 20)

    assert torch.equal(few.mask.to_bool(sizes, torch.device("cpu")).expand(*sizes), whole[[2]])


@pytest.mark.parametrize("part", PARTS)
def test_a_mask_is_written_down_as_python(part: str) -> None:
    mask = mask_part(part, EVERY, "cpu") & attnkit.causal()  # type: ignore[arg-type]  # one of PARTS
    read = eval(scripts.mask_source(mask), {"attnkit": attnkit, "torch": torch})
    device = torch.device("cpu")

    assert torch.equal(
        read.to_bool(EVERY, device).expand(*EVERY), mask.to_bool(EVERY, device).expand(*EVERY)
    )


def _call(mask: attnkit.Mask) -> Call:
    return Call({name: torch.zeros(3, 2, 20, 4) for name in ("query", "key", "value")}, mask)


PLUGIN = """
from dataclasses import replace
import torch
from attnkit_plugins.recurrence.gated_linear import VARIANT as GATED
from attnkit_plugins.feedforward.moe import VARIANT as MOE
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI
from attnkit_plugins.softmax.self_attention import VARIANT as SELF
from attnkit.interface import load

def changed(variant, name, change):
    right = variant.implementations[1]
    def wrong(*tensors, **given):
        return change(load(right.function), *tensors, **given)
    one = replace(right, name="wrong", function=wrong)
    return replace(variant, name=name, implementations=(variant.implementations[0], one))

def twice(attend, *tensors, **given):
    return attend(*tensors, **{**given, "scale": given["scale"] ** 2})

def forgetful(run, *tensors, **given):
    return run(*tensors, **{**given, "initial_state": given["initial_state"] * 0})

def even(mix, x, experts, gates, **given):
    return mix(x, experts, gates * 0 + 1 / gates.shape[1], **given)

def steep(attend, *tensors, **given):
    out = attend(*tensors, **given)
    return out + 0.01 * (out - out.detach())

def cut_off(attend, *tensors, **given):
    return attend(*tensors, **given).detach()

def strides_of(tensor):
    return torch.empty(tensor.shape).stride()

def blind(attend, query, *tensors, **given):
    return attend(query.as_strided(query.shape, strides_of(query)), *tensors, **given)

class Blind(torch.autograd.Function):
    @staticmethod
    def forward(_, out):
        return out.clone()

    @staticmethod
    def backward(_, grad):
        return grad.as_strided(grad.shape, strides_of(grad)).clone()

def blind_backward(attend, *tensors, **given):
    return Blind.apply(attend(*tensors, **given))

def scaling(attend, query, *tensors, **given):
    query.detach().mul_(given["scale"])
    return attend(query, *tensors, **{**given, "scale": 1.0})

def widened(attend, *tensors, **given):
    return attend(*tensors, **given).double()

def crashing(attend, query, *tensors, **given):
    if query.shape[2] == 17:
        raise IndexError("17 is odd")
    return attend(query, *tensors, **given)

KEPT = {}

def kept_by_length(attend, *tensors, mask, **given):
    mask = KEPT.setdefault(tensors[0].shape[2], mask)
    return attend(*tensors, mask=mask, **given)

def careless_without_gradients(attend, query, *tensors, **given):
    if not torch.is_grad_enabled():
        query = query.half().to(query.dtype)
    return attend(query, *tensors, **given)

def sharper_with_gradients(attend, query, *tensors, **given):
    return attend(2 * query if query.requires_grad else query, *tensors, **given)

EAGER = [each for each in MULTI.implementations if each.name in ("reference", "eager")]
MULTI = replace(MULTI, implementations=tuple(EAGER))
CACHED = changed(MULTI, "cached", kept_by_length)
CARELESS = changed(MULTI, "careless", careless_without_gradients)
SHARPER = changed(MULTI, "sharper", sharper_with_gradients)
ATTENTION = changed(SELF, "scaled_twice", twice)
RECURRENCE = changed(GATED, "forgetful", forgetful)
MIXTURE = changed(MOE, "even_gates", even)
GRADIENT = changed(SELF, "steep", steep)
CUT_OFF = changed(SELF, "cut_off", cut_off)
STRIDES = changed(SELF, "blind", blind)
BACKWARD = changed(SELF, "blind_backward", blind_backward)
WRITE = changed(SELF, "scaling", scaling)
DTYPE = changed(SELF, "widened", widened)
CRASH = changed(SELF, "crashing", crashing)
"""

SHOWN = (
    ("ATTENTION", "A3.temperature"),
    ("RECURRENCE", "T4.recurrent_state"),
    ("MIXTURE", "N1.mixture"),
    ("GRADIENT", "N2.backward"),
    ("CUT_OFF", "N2.backward"),
    ("STRIDES", "S5.strides"),
    ("BACKWARD", "S6.grad_out_strides"),
    ("WRITE", "S2.inputs_unchanged"),
    ("DTYPE", "S1.output"),
    ("CRASH", "S1.output"),
    ("CACHED", "S7.call_order"),
    ("CARELESS", "S11.grad_modes"),
    ("SHARPER", "S11.grad_modes"),
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of wrong variants, on the path."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "acme_wrong.py").write_text(PLUGIN)
    sys.path.insert(0, str(folder))
    return folder


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(("name", "check"), SHOWN)
def test_a_script_fails_as_long_as_the_variant_is_wrong(
    name: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import acme_wrong

    acme_wrong.KEPT.clear()
    made = getattr(acme_wrong, name)
    script = record_of(made, check).reproduction

    # by itself, where nothing was called before
    assert fresh.fails(script)
    assert f"from acme_wrong import {name}" in script
    assert "attnkit_contracts" not in script
    assert len(script.splitlines()) <= 30
    # a script is a program of its own, which may switch gradients off
    with torch.enable_grad(), pytest.raises((AssertionError, IndexError, RuntimeError)):
        exec(script, {})
    right = made.implementations[0]
    mended = replace(made, implementations=(right, replace(right, name="wrong")))
    monkeypatch.setattr(acme_wrong, name, mended)
    with torch.enable_grad():
        exec(script, {})


def test_a_script_that_ends_well_does_not_fail() -> None:
    assert fresh.fails("raise ValueError")
    assert fresh.fails("import sys; sys.exit(1)")
    assert not fresh.fails("import torch, attnkit; print(torch.ones(1))")


@pytest.mark.usefixtures("plugin")
def test_what_depends_on_the_calls_before_is_said_and_shown_with_one() -> None:
    import acme_wrong

    acme_wrong.KEPT.clear()
    record = record_of(acme_wrong.CACHED, "S7.call_order")

    assert str(record.diagnosis).startswith("right in a new process, wrong after another call")
    assert "# another call of the same sizes" in record.reproduction


def test_the_exit_code_of_a_script_is_that_of_a_failure(plugin: Path) -> None:
    import acme_wrong

    script = record_of(acme_wrong.ATTENTION, "A3.temperature").reproduction
    done = run("-c", script, cwd=plugin)
    expected, _, got = done.stdout.partition("got     ")

    assert done.returncode == 1
    assert "AssertionError: off by up to" in done.stderr
    assert expected.startswith("expected tensor(")
    assert _first(expected) != pytest.approx(_first(got), rel=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_is_written_down_as_python(layout: layouts.Layout) -> None:
    names = ("query", "key", "value")
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(2, 3, 5, 4, generator=draw) for name in names}
    read: dict[str, Any] = {"torch": torch, **tensors}
    exec("\n".join(layout.lines(tensors)), read)

    for name, laid in layout.of(tensors).items():
        assert torch.equal(read[name], laid)
        assert read[name].stride() == laid.stride()
        assert read[name].storage_offset() == laid.storage_offset()


def _first(text: str) -> float:
    found = re.search(r"-?\d+\.\d*(e[-+]\d+)?", text)
    assert found is not None
    return float(found[0])


def test_a_variant_without_an_address_keeps_the_script_that_runs_its_check(
    wrong: dict[str, Variant],
) -> None:
    record = record_of(wrong["mutant_scale_twice"], "A3.temperature")

    assert f"attnkit_contracts.rerun({record.id!r}, seed=0)" in record.reproduction
