"""What a check is, and the list of all of them. Imports no torch.

To add a check, write a function in a module of `attnkit_contracts.checks` and decorate it:

    @check(
        "A4.row_sums",
        "With value = 1 everywhere, every row that sees a key is 1.",
        families=("softmax",),
    )
    def row_sums(subject: Subject) -> Measured: ...

The function draws its inputs from the subject, calls it, and returns what it measured. It raises
`BrokenError` where the rule does not hold, and `InconclusiveError` where it cannot tell.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnkit.families import BUILT_IN
from attnkit.promises import Dtype, Promises, Relation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from attnkit.interface import Variant

Level = Literal["operation", "layer"]
Tier = Literal["fast", "standard", "full"]
Verdict = Literal["E", "R", "S"]

ANYWHERE: tuple[Level, ...] = ("operation", "layer")
"""The levels of a rule that holds of operations and layers alike."""

TIERS: tuple[Tier, ...] = get_args(Tier)
"""Each tier contains those before it."""

GROUPS = {
    "S": "contract and memory",
    "M": "who may look at what",
    "A": "algebra",
    "T": "time and state",
    "N": "numerics and gradients",
    "F": "feed-forward and routing",
    "I": "integration",
}
"""Group letters and what they stand for; extensions may use others."""

MODULES = {
    "calls": "shapes memory surroundings histories refusal options modes",
    "masks": "context visibility forms padding documents other_maths",
    "algebra": "linearity identities extremes",
    "state": "pieces decode steps",
    "numerics": "errors combinations layers gradients slopes dropout autocast growth",
    "experts": "router mixtures",
    "integration": "persistence compilation transforms custom_ops speed devices lint",
}
"""The modules of `attnkit_contracts.checks` by room, in the order of the catalogue."""


class BrokenError(AssertionError):
    """A rule does not hold; says what was expected, what came and where."""

    def __init__(self, reason: str, *, value: float | None = None) -> None:
        super().__init__(reason)
        self.value = value


class InconclusiveError(Exception):
    """A check could not tell; says why. Neither green nor red."""


class SkippedEnvError(Exception):
    """This machine lacks what a check needs, a GPU say; says what."""


@dataclass(frozen=True)
class Measured:
    """What a check found; it holds iff ``value <= threshold``, so NaN never passes.

    Attributes:
        value: The worst that was seen.
        threshold: The largest value that passes.
        unit: What both count.
        where: Which case or place showed the worst.
    """

    value: float
    threshold: float
    unit: str
    where: str = ""


def _undefined(*_: object, **__: object) -> Measured:
    raise InconclusiveError("a check decorates a function")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule that parts must keep; makes itself one with a function that it decorates.

    Attributes:
        id: Group letter, number and name, ``M1.suffix_perturbation``; never reused or renamed.
        statement: The rule, in one sentence of mathematics.
        function: Called as ``function(subject, **params)``.
        families: The families it is about.
        levels: Whether it is run on operations, on layers, or on both.
        applies: Whether these promises call for it.
        cases: The sets of parameters it is run with, by promises; one empty set by default.
        relations: The relations it holds for.
        dtypes: The dtypes it is run in; the others would show nothing more.
        fields: Fields that the layer's configuration must have.
        tier: The smallest tier that runs it.
        verdict: E exact, without tolerance; R an error in a derived unit; S statistical.
        required: Whether a subject that it applies to may not go without it.
        advisory: A minor release of attnkit, ``0.2``. Up to it a failure is reported but not
            red, so that a new check breaks nobody's build; from the next one on it is.
        catches: Makes wrong variants that it must catch. A check of an extension brings its own,
            which every report that has the check is tried on; for ours, see the tests.
        needs_definition: Whether it compares with the definition that a variant has of its layer.
        plugins_only: Whether it is about how a plugin is declared, which shows nothing of a layer
            that was given to `attnkit_contracts.adapt_layer`.
        measures_time: Whether nothing else may run beside it.
    """

    id: str = field(kw_only=False)
    statement: str = field(kw_only=False)
    function: Callable[..., Measured] = _undefined
    families: tuple[str, ...] = tuple(BUILT_IN)
    levels: tuple[Level, ...] = ("operation",)
    applies: Callable[[Promises], bool] = field(default=lambda _: True)
    cases: Callable[[Promises], Iterable[Mapping[str, Any]]] = field(default=lambda _: ({},))
    relations: tuple[Relation, ...] = get_args(Relation)
    dtypes: tuple[Dtype, ...] = get_args(Dtype)
    fields: tuple[str, ...] = ()
    tier: Tier = "fast"
    verdict: Verdict = "E"
    required: bool = False
    advisory: str = ""
    catches: Callable[[], Iterable[Variant]] = field(default=tuple)
    needs_definition: bool = False
    plugins_only: bool = False
    measures_time: bool = False

    def __call__(self, function: Callable[..., Measured]) -> Check:
        """Return the check that a function makes of this."""
        return replace(self, function=function)

    @property
    def group(self) -> str:
        """The letter the id begins with."""
        return self.id[0]

    @property
    def is_advisory(self) -> bool:
        """Whether it is too new to be red."""
        return bool(self.advisory) and release(version()) <= release(self.advisory)


check = Check
"""Decorates the function of a check, with what a `Check` is made of."""

call_check = partial(check, levels=ANYWHERE)
"""The same, of operations and layers alike."""

operation_check = partial(check, families=("softmax", "recurrence"))
"""The same, of all operations."""

recurrence_check = partial(check, families=("recurrence",))
"""The same, of recurrences themselves."""

softmax_check = partial(check, families=("softmax",), relations=("exact",))
"""The same, of softmax attention itself: what is approximate or different need not keep it."""

layer_check = partial(check, levels=("layer",))
"""The same, of layers alone."""

mixing_check = partial(check, families=("softmax", "recurrence", "mixer"), levels=ANYWHERE)
"""The same, of all in which tokens look at one another."""


def version() -> str:
    """Return the version of attnkit, and so of this suite."""
    from attnkit.versions import version_of

    return version_of("attnkit", "not installed")


def release(version: str) -> tuple[int, int]:
    """Return major and minor of a version; without one, later than all others."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (sys.maxsize, 0)


def all_checks() -> tuple[Check, ...]:
    """Return all checks: the built-in ones in their order, then those of extensions.

    Raises:
        TypeError: An extension offers something else than a `Check`.
        ValueError: Two checks share an id.
    """
    from attnkit.registry import registry

    names = (f"{room}.{name}" for room, listed in MODULES.items() for name in listed.split())
    modules = (importlib.import_module(f"attnkit_contracts.checks.{name}") for name in names)
    own = [each for module in modules for each in vars(module).values() if isinstance(each, Check)]
    further = registry.default().contracts()
    for each in further:
        if not isinstance(each, Check):
            raise TypeError(f"hook attnkit_contracts must return Check values, got {each!r}")
    checks = (*own, *further)
    ids = [each.id for each in checks]
    for repeated in sorted({each for each in ids if ids.count(each) > 1}):
        raise ValueError(f"two checks have the id {repeated!r}; rename the one of the extension")
    return checks
