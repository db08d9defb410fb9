"""`attnkit.attention`: what it refuses, and what it does at the edges."""

from __future__ import annotations

import pytest
import torch

import attnkit
from attnkit.errors import (
    ArgumentError,
    AttnkitError,
    DeviceError,
    DtypeError,
    MaskError,
    ShapeError,
    UnknownVariantError,
    UnsupportedError,
)


def tensors(
    batch: int = 2, heads: int = 4, kv_heads: int = 2, length: int = 5, keys: int = 7
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query = torch.randn(batch, heads, length, 8)
    return query, torch.randn(batch, kv_heads, keys, 8), torch.randn(batch, kv_heads, keys, 6)


query, key, value = tensors()

REFUSED = [
    (dict(query=[1.0]), ArgumentError, r"query must be a tensor .*got \[1.0\]"),
    (dict(query=query[0]), ShapeError, r"query must have 4 dimensions.*got \(4, 5, 8\)"),
    (dict(key=key[:1]), ShapeError, r"share batch size, got query \(2, 4, 5, 8\).*2 != 1"),
    (dict(key=key[:, :, :3]), ShapeError, r"key and value must share length.*3 != 7"),
    (dict(key=key[:, :1]), ShapeError, r"key and value must share number of heads.*1 != 2"),
    (dict(key=key[..., :4]), ShapeError, r"query and key must share head_dim.*8 != 4"),
    (dict(query=query[:, :3]), ShapeError, r"must be a multiple .*got 3 and 2"),
    (dict(query=query.long()), DtypeError, r"float64, got int64, float32, float32"),
    (dict(value=value.double()), DtypeError, r"one dtype, got float32, float32, float64"),
    (dict(value=value.to("meta")), DeviceError, r"one device, got cpu, cpu, meta"),
    (dict(mask=None), MaskError, r"got None; attnkit.full\(\) hides nothing"),
    (dict(mask=torch.ones(5, 7, dtype=torch.bool)), MaskError, r"got a tensor \(5, 7\) bool; wrap"),
    (dict(mask="causal"), MaskError, r"got 'causal'"),
    (dict(mask=attnkit.padding([1, 2, 3])), MaskError, r"\(B,\) = \(2,\), got \(3,\)"),
    (dict(mask=attnkit.padding([1, 9])), MaskError, r"0..S = 0..7, got 1..9"),
    (dict(scale=float("nan")), ArgumentError, r"scale must be a finite number or None, got nan"),
    (dict(scale="big"), ArgumentError, r"scale .*got 'big'"),
    (dict(softcap=0.0), ArgumentError, r"softcap must be a finite number above 0 or None, got 0.0"),
    (dict(dropout_p=1.0), ArgumentError, r"0 <= dropout_p < 1, got 1.0"),
    (dict(bias=torch.zeros(5, 6)), ShapeError, r"\(2, 4, 5, 7\), got \(5, 6\)"),
    (dict(bias=torch.ones(5, 7, dtype=torch.bool)), DtypeError, r"attnkit.dense\(tensor\)"),
    (dict(bias=1.0), ArgumentError, r"bias must be a floating tensor or None, got 1.0"),
    (dict(sinks=torch.zeros(3)), ShapeError, r"sinks must be \(H,\) = \(4,\), got \(3,\)"),
    (dict(sinks=torch.zeros(4, device="meta")), DeviceError, r"got meta and cpu"),
    (dict(variant="multi_hed"), UnknownVariantError, r"Did you mean 'multi_head'\?"),
    (dict(variant=3), ArgumentError, r"variant must be a name or an attnkit.Variant, got int"),
    (dict(variant="linear"), ArgumentError, r"'linear' is of family 'recurrence'"),
    (dict(implementation="fast"), ArgumentError, r"no implementation 'fast'.*there are: "),
]


def test_a_wrong_argument_is_refused_by_name(
    change: dict[str, object], error: type[AttnkitError], message: str
) -> None:
    arguments = {"query": query, "key": key, "value": value, "variant": "multi_head", **change}
    with pytest.raises(error, match=message):
        attnkit.attention(**arguments)


def test_a_refusal_names_every_reason_and_who_can() -> None:
    with pytest.raises(UnsupportedError) as caught:
        attnkit.attention(
            query,
            key,
            value,
            softcap=5.0,
            sinks=torch.zeros(4),
            variant="multi_head",
            implementation="sdpa",
        )
    message = str(caught.value)
    assert "multi_head.sdpa: softcap: asked for, not promised; sinks: asked" in message
    assert "multi_head.eager" in message.rpartition("what can:")[2]


def test_a_second_wrong_call_is_refused_like_the_first() -> None:
    for _ in range(2):
        with pytest.raises(ShapeError):
            attnkit.attention(query, key[:, :, :3], value, variant="multi_head")


def test_a_remembered_choice_still_checks_the_contents_of_a_mask() -> None:
    attnkit.attention(query, key, value, mask=attnkit.padding([1, 2]), variant="multi_head")
    with pytest.raises(MaskError, match=r"got 1\.\.8"):
        attnkit.attention(query, key, value, mask=attnkit.padding([1, 8]), variant="multi_head")


def test_fallback_runs_what_the_caller_allowed() -> None:
    asked = dict(softcap=5.0, variant="multi_head", implementation="sdpa")
    out = attnkit.attention(query, key, value, fallback=("eager",), **asked)
    expected = attnkit.attention(query, key, value, **{**asked, "implementation": "eager"})
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("batch", "length", "keys"), [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)])
def test_empty_tensors_give_zeros_and_zero_gradients(batch: int, length: int, keys: int) -> None:
    inputs = [x.requires_grad_() for x in tensors(batch=batch, length=length, keys=keys)]
    out = attnkit.attention(*inputs, variant="multi_head")
    assert out.shape == (batch, 4, length, 6)
    assert not out.any()
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in inputs)


def test_nan_in_padding_reaches_neither_outputs_nor_gradients() -> None:
    lengths, inputs = [3, 7], [x.clone().requires_grad_() for x in (query, key, value)]
    dirty = [x.detach().clone() for x in inputs]
    for x in dirty[1:]:
        x[0, :, 3:] = float("nan")
    dirty = [x.requires_grad_() for x in dirty]
    mask = attnkit.padding(lengths)
    clean_out = attnkit.attention(*inputs, mask=mask)
    dirty_out = attnkit.attention(*dirty, mask=mask)
    assert torch.equal(clean_out, dirty_out)
    clean_out.square().sum().backward()
    dirty_out.square().sum().backward()
    for clean, other in zip(inputs, dirty, strict=True):
        assert clean.grad is not None
        assert other.grad is not None
        assert torch.equal(clean.grad, other.grad)


def test_autocast_leaves_the_arithmetic_of_an_implementation_alone() -> None:
    expected = attnkit.attention(query, key, value, variant="multi_head", implementation="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attnkit.attention(query, key, value, variant="multi_head", implementation="eager")
    assert torch.equal(out, expected)


def test_auto_chooses_among_built_ins_alone() -> None:
    mine = attnkit.get_variant("multi_head")
    cheap = attnkit.Implementation(
        name="reference",
        function=lambda *_, **__: pytest.fail("a stranger's implementation ran unasked"),
        summary="claims to cost nothing",
        promises=mine.promises,
        cost=lambda _: 0.0,
    )
    fields = {f: getattr(mine, f) for f in ("summary", "source", "config", "layer", "promises")}
    stranger = attnkit.Variant(
        name="acme_attention",
        family="softmax",
        relation="exact",
        implementations=(cheap,),
        **fields,
    )
    with attnkit.register(stranger):
        attnkit.attention(query, key, value)


@pytest.mark.parametrize("length", [1, 5, 17, 200])
@pytest.mark.parametrize(
    ("implementation", "dynamic"),
    # with symbols for all sizes, heads and widths too
    [("eager", None), ("eager", True), ("sdpa", True)],
)
def test_a_compiled_call_equals_the_eager_one(
    length: int, implementation: str, dynamic: bool | None
) -> None:
    mask = attnkit.causal()

    def call(*given: torch.Tensor) -> torch.Tensor:
        return attnkit.attention(
            *given, mask=mask, variant="multi_head", implementation=implementation
        )

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="eager")
    inputs = tensors(length=length, keys=length)
    assert torch.equal(compiled(*inputs), call(*inputs))


def test_a_compiled_call_leaves_the_torch_call_alone_in_the_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attnkit.attention(q, k, v, variant="multi_head", implementation="sdpa")

    torch.compile(call, fullgraph=True, backend=keep)(query, key, value)
    (graph,) = graphs
    called = [node.target for node in graph.graph.nodes if node.op.startswith("call")]
    scaled = torch.nn.functional.scaled_dot_product_attention
    assert [target for target in called if target is not scaled] == ["to"] * (len(called) - 1)
    assert scaled in called


def test_a_compiled_call_refuses_what_the_eager_one_refuses() -> None:
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attnkit.attention(q, k, v, softcap=3.0, variant="multi_head", implementation="sdpa")

    with pytest.raises(Exception, match="softcap: asked for, not promised"):
        torch.compile(call, fullgraph=True, backend="eager")(query, key, value)
