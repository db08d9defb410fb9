"""Whatever a stranger's host answers, its name is told and the model is as it was."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import attnkit
from attnkit.errors import HostError, UnsupportedError
from attnkit.hosts import answers
from attnkit.hosts.parts import Weights
from attnkit.registry.discovery import EXTENSION_GROUP, Entry
from attnkit.registry.registry import Registry
from attnkit.sites import Needs, Site
from attnkit.swaps.plan import assign
from attnkit.swaps.transaction import carry_out
from attnkit_plugins.hosts.torch import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Stranger:
    """The host for torch.nn, under its name; a subclass does one thing otherwise."""

    name = "torch"
    tested = HOST.tested
    sites = HOST.sites
    attach = HOST.attach
    sample = HOST.sample
    run = HOST.run


SITE = Site(
    path="self_attn",
    kind="attention",
    layer="L",
    host="torch",
    needs=Needs(),
    dtype="float32",
    device="cpu",
)


class Sites(Stranger):
    """Answers what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def sites(self, model: nn.Module) -> Any:  # type: ignore[override]
        return self.answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "sites returned NoneType; it must return a sequence of attnkit.sites.Site"),
        ((site for site in ()), "sites returned generator; it must return a sequence"),
        (["self_attn"], "sites returned str 'self_attn' among them; it must return attnkit.sites"),
        (
            [SITE.model_copy(update={"host": "timm"})],
            "sites returned 'self_attn' of host 'timm'; it must return sites of its own name",
        ),
        (
            [SITE.model_copy(update={"path": "attn"})],
            "sites returned path 'attn', which TransformerEncoderLayer does not have",
        ),
    ],
)
def test_sites_that_are_none_are_an_error_with_the_hosts_name(answer: object, told: str) -> None:
    with pytest.raises(HostError) as caught:
        answers.sites_of(Sites(answer), layer())
    assert "host 'torch' (" in str(caught.value)
    assert f"test_host_contract.Sites): {told}" in str(caught.value)


class NoAttachment(Stranger):
    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        HOST.attach(model, site, mixer, label)


class Leaving(Stranger):
    """Forgets the class, the hooks or the order of what it changed."""

    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        made = HOST.attach(model, site, mixer, label)
        model.self_attn.note = "attnkit"
        model._modules["norm1"] = model._modules.pop("norm1")
        model.self_attn.register_forward_hook(lambda *_: None)
        return made


class Changing(Stranger):
    """Undoes by a copy, not by identity."""

    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        made = HOST.attach(model, site, mixer, label)

        class Undone:
            def blocked(self) -> None:
                return None

            def undo(self) -> None:
                made.undo()
                model.norm1 = nn.LayerNorm(32)

        return Undone()


class Blocked(Stranger):
    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        made = HOST.attach(model, site, mixer, label)

        class Stuck:
            undo = made.undo

            def blocked(self) -> str:
                return "never"

        return Stuck()


class Raising(Stranger):
    """Changes something before it raises."""

    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        HOST.attach(model, site, mixer, label)
        raise OSError("acme is out")


class NoSample(Stranger):
    def sample(self, model: Any, sites: Any) -> Any:
        return [torch.zeros(2)]


class NoMapping(Stranger):
    def run(self, model: Any, sample: Any) -> Any:
        return model(**sample)


class NoTensors(Stranger):
    def run(self, model: Any, sample: Any) -> Any:
        return {"output": model(**sample).tolist()}


class Numbers(Stranger):
    def run(self, model: Any, sample: Any) -> Any:
        return {"output": model(**sample).argmax(-1)}


class NoProbes(Stranger):
    def probes(self, model: Any, sites: Any, sample: Any) -> Any:
        return None


class NoRequest(Stranger):
    """Hands the mixer tensors."""

    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        return HOST.attach(model, site, lambda request: mixer(request.query), label)


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (NoAttachment, r"attach returned NoneType; it must return an object with blocked\(\) and"),
        (
            Leaving,
            r"undo left \w+\._modules, .*self_attn\.note, .*self_attn\._forward_hooks.* changed",
        ),
        (Changing, r"undo left TransformerEncoderLayer\._modules changed; it must put back"),
        (Blocked, "blocked returned 'never' right after attach"),
        (NoSample, "sample returned list; it must return a mapping"),
        (NoMapping, "run returned Tensor; it must return a mapping"),
        (NoTensors, "run returned list as 'output'; it must return a mapping"),
        (Numbers, r"run returned \(2, 17\) torch\.int64 as 'output'"),
        (NoProbes, "probes returned NoneType; it must return a sequence"),
        (
            NoRequest,
            r"called the mixer at self_attn with torch\.Tensor; 'flash' takes an .*Request",
        ),
    ],
)
def test_an_answer_of_the_wrong_kind_names_the_host_and_leaves_the_model(
    host: Callable[[], Any], told: str
) -> None:
    model = layer()
    before = everything_in(model)
    with pytest.raises(HostError, match=rf"(?s)host 'torch'.*{told}"):
        swap(model, host())
    assert everything_in(model) == before


def test_an_attach_that_raises_half_way_leaves_the_model_as_it_was() -> None:
    model = layer()
    before = everything_in(model)
    with pytest.raises(OSError, match="acme is out"):
        swap(model, Raising())
    assert everything_in(model) == before


def test_a_host_that_has_only_what_it_must_is_enough() -> None:
    model = layer()
    with swap(model, Stranger()) as swapped:
        assert [site.path for site in swapped.receipt.sites] == ["self_attn"]


def test_a_recurrence_at_a_host_that_takes_it_for_any_mixer_names_what_it_needs() -> None:
    model = layer()
    before = everything_in(model)
    needs = Needs(heads=4, causal=True)
    site = SITE.model_copy(update={"input_dim": 32, "needs": needs})
    with pytest.raises(HostError, match=r"multihead\.Arrived; 'linear' takes an .*protocol\.Span"):
        carry_out(model, "linear", assign("linear", [site]), {"torch": Stranger()}, None, "exact")
    assert everything_in(model) == before


def test_a_host_that_hands_out_no_weights_is_refused_by_name() -> None:
    model = layer()
    site = SITE.model_copy(update={"path": "linear1", "kind": "feedforward"})
    plan = {"linear1": {"variant": "moe", "num_experts": 2, "top_k": 1}}
    with pytest.raises(UnsupportedError, match=r"weights: host 'torch' hands out none of linear1"):
        carry_out(model, plan, assign(plan, [site]), {"torch": Stranger()}, None, "exact")


def test_weights_of_another_shape_name_the_host() -> None:
    class Transposed(Stranger):
        def weights(self, model: nn.Module, path: str) -> Weights:
            return Weights(torch.zeros(1, 8, 12), torch.zeros(1, 6, 8))

    with pytest.raises(HostError, match=r"gate_up \(1, 8, 12\) and down \(1, 6, 8\); it must"):
        answers.weights_of(Transposed(), layer(), "linear1")


def test_a_host_opens_a_model_or_says_none(tmp_path: Path) -> None:
    class Opening(Stranger):
        def open(self, folder: Path) -> Any:
            return {"weights": folder}

    with pytest.raises(HostError, match=r"open returned dict; it must return a torch\.nn\.Module"):
        answers.opened(Opening(), tmp_path)


# the hook


HOOK = """
import attnkit

class Host:
    name = "acme"
    tested = ()
    def sites(self, model): return ()
    def attach(self, model, site, mixer, label): ...
    def sample(self, model, sites): return {}
    def run(self, model, sample): return {}

@attnkit.hookimpl
def attnkit_hosts():
    return (Host(),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder whose modules can be imported, and are forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_host")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "    def run(self, model, sample): return {}\n",
            "",
            "run must be a method (model, sample)",
        ),
        ('name = "acme"', "name = None", "name must be that of a library, got NoneType"),
        ("tested = ()", 'tested = "1.0"', "tested must be a tuple of versions, got str '1.0'"),
        ("(self, model, site, mixer, label)", "(self, model, site)", "got (model, site)"),
        ("return {}\n\n", "return {}\n    probes = True\n\n", "probes must be a method (model,"),
        ("(Host(),)", "(Host,)", "needs an instance, got the class Host"),
    ],
)
def test_an_object_that_lacks_what_a_host_must_have_is_a_broken_extension(
    folder: Path, old: str, new: str, told: str
) -> None:
    assert HOOK.count(old) == 1
    (folder / "acme_wrong_host.py").write_text(HOOK.replace(old, new))
    (folder / "acme_right_host.py").write_text(HOOK)
    registry = of_modules("acme_wrong_host", "acme_right_host")
    assert [host.name for host in registry.hosts()] == ["acme"]
    (broken,) = registry.broken_extensions()
    assert broken.entry.module == "acme_wrong_host"
    assert "returned a wrong host, " in broken.cause
    assert told in broken.cause


def test_a_name_that_two_hosts_have_stays_with_the_first(
    folder: Path,
) -> None:
    for name in ("acme_one_host", "acme_two_host"):
        (folder / f"{name}.py").write_text(HOOK)
    registry = of_modules("acme_one_host", "acme_two_host")
    assert [type(host).__module__ for host in registry.hosts()] == ["acme_one_host"]
    (broken,) = registry.broken_extensions()
    assert broken.entry.module == "acme_two_host"
    assert "a host named 'acme', which acme_one_host 1.0 has, from attnkit_hosts" in broken.cause


def test_nobody_takes_the_name_of_a_host_of_attnkit(
    folder: Path,
) -> None:
    (folder / "aaa_host.py").write_text(HOOK.replace('"acme"', '"torch"'))
    registry = of_modules("aaa_host", "attnkit_plugins.hosts.torch", owner="attnkit")
    assert registry.hosts() == (HOST,)
    assert [each.entry.module for each in registry.broken_extensions()] == ["aaa_host"]


def of_modules(first: str, second: str, owner: str | None = None) -> Registry:
    return Registry(
        Entry(name=module, owner=whose, version="1.0", module=module, group=EXTENSION_GROUP)
        for module, whose in ((first, first), (second, owner or second))
    )


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval()


def swap(model: nn.Module, host: Any) -> Any:
    assignments = assign({"self_attn": "flash"}, attnkit.survey(model))
    return carry_out(model, "flash", assignments, {host.name: host}, None, "exact")


def everything_in(model: nn.Module) -> list[object]:
    """Return what may not change, by identity; the objects are alive, so their ids are theirs."""
    return [
        (name, type(module), [(key, id(each)) for key, each in vars(module).items()], tables)
        for name, module in model.named_modules()
        for tables in [
            [
                [(key, id(each)) for key, each in table.items()]
                for table in vars(module).values()
                if isinstance(table, dict)
            ]
        ]
    ]
