"""Run the suite on implementations that nobody here wrote, and write the page about it.

    pip install fla-core x-transformers einops einx loguru torch-einops-utils triton timm
    python docs/_build/generate_findings.py

writes ``docs/reference/foreign.md``: what ran, in which versions, and every deviation with the note
that accounts for it. A deviation without a note is shown as such, and the exit code is then 1.
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from foreign_functions import FOREIGN, Foreign
from foreign_layers import FOREIGN_LAYERS, ForeignLayer

import attnkit
import attnkit_contracts
from attnkit_contracts.foreign.functions import FUNCTION

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit_contracts import Record, Report

PAGE = Path(__file__).parents[1] / "reference" / "foreign.md"
FINDINGS = "../findings"


@dataclass(frozen=True)
class Note:
    """What accounts for deviations.

    Attributes:
        title: A heading.
        kind: ``difference`` from our definition that is a convention of theirs, or ``finding``.
        text: What it is, and where it comes from.
        accounts: Whether it accounts for a deviation.
        script: File name of a script that shows it; empty for none.
    """

    title: str
    kind: str
    text: str
    accounts: Callable[[Record], bool]
    script: str = ""


def _is(*variants: str, check: str = "", dtype: str = "", told: str = "") -> Callable[..., bool]:
    """Return a test of variant, check, dtype, and words of the diagnosis or reason."""

    def accounts(record: Record) -> bool:
        return (
            (not variants or record.variant in variants)
            and record.check.startswith(check)
            and record.dtype in (dtype or record.dtype)
            and told in f"{record.reason} {record.diagnosis}"
        )

    return accounts


EAGER = ("llama_eager", "bert_eager", "gemma2_eager", "gpt_oss_eager", "x_transformers")
ROTATED = ("llama_attention", "llama_attention_eager", "gpt_oss_attention")
HALF = "bfloat16, float16"
IN_FLOAT32 = (
    "llama_eager",
    "gemma2_eager",
    "x_transformers",
    "llama_attention_eager",
    "mamba_mixer",
    "mamba2_mixer",
    "qwen3_next_delta_net",
    "recurrent_gemma_block",
    "rwkv_attention",
    "x_transformers_attention",
    "x_transformers_causal",
)

KINDS = {"finding": "A finding.", "difference": "A declared difference."}

NOTES = (
    Note(
        "Key/value heads tiled",
        "finding",
        "x-transformers gives query head h the key/value head h mod Hkv (it repeats the heads as "
        "`(r h)`), where grouped-query checkpoints elsewhere mean h // (H / Hkv). A model trained "
        "with it is consistent with itself; weights moved between it and another library are not.",
        lambda record: (
            record.variant == "x_transformers"
            and (
                "heads_tiled" in record.diagnosis.named
                or record.check == "A2.head_map"
                or "gqa" in str(record.params.get("inputs", ""))
            )
        ),
        "x_transformers_heads.py",
    ),
    Note(
        "Empty batches",
        "finding",
        "A reshape with -1 cannot tell the size of an axis when the batch is empty, so B = 0 "
        "raises. A data-parallel rank without samples, or a filter that keeps none, ends here.",
        _is(check="S8.empty", told="-1"),
        "transformers_empty_batch.py",
    ),
    Note(
        "Empty sequences",
        "difference",
        "L = 0 raises: torch's recurrent layers say that they want a token, a convolution or a "
        "shift by one further down that its input is too short. Our own layers give (B, 0, D).",
        _is(check="S8.empty"),
    ),
    Note(
        "NaN gradients from rows that see nothing",
        "finding",
        "`need_weights=True`, the default of torch.nn.MultiheadAttention, takes the softmax of a "
        "row of -inf, which is NaN. Left padding under a causal mask has such rows. Nobody reads "
        "their outputs, but zero times NaN is NaN on the way back: the gradients of all tokens "
        "and weights are NaN. With `need_weights=False` such rows are zeros.",
        _is("torch_mha_weights", check="M9.padding_content"),
        "torch_mha_nan_gradients.py",
    ),
    Note(
        "The last state keeps its graph",
        "finding",
        "RecurrentGemma's recurrent unit keeps its last state on the module, with the graph it "
        "came from, also when no cache is asked for. After a step of training the module holds on "
        "to that step's activations, and `copy.deepcopy` of the model, for an average of its "
        "weights say, raises.",
        _is("recurrent_gemma_block", check="I4.copies"),
        "recurrent_gemma_deepcopy.py",
    ),
    Note(
        "Rotary angles in float32",
        "difference",
        "The cosines and sines of positions are computed in float32 whatever the inputs are. In "
        "float64 the same tokens further along therefore differ by float32's rounding.",
        _is(*ROTATED, check="M1", dtype="float64"),
    ),
    Note(
        "A state in half precision",
        "difference",
        "torch.nn.GRU rounds its state to the dtype of the inputs after every token, where our "
        "recurrences keep at least float32: a sample alone, which another product computes, "
        "drifts away from the same sample in a batch.",
        _is("torch_gru", check="A1.batch_independence", dtype=HALF),
    ),
    Note(
        "float64 computed in float32",
        "difference",
        "The softmax, the decays or the state of a recurrence are asked for in float32 whatever "
        "the inputs are, which is wider than half precision and narrower than float64: float64 "
        "inputs give float32 answers. Where a mask holds float64's lowest number, the cast makes "
        "it -inf, and a row that sees nothing NaN.",
        _is(*IN_FLOAT32, dtype="float64"),
        "transformers_float64.py",
    ),
    Note(
        "Rows that see nothing",
        "difference",
        "Masks that add the lowest finite number, or fill with it, leave a row that sees nothing "
        "with equal weights: it gets the mean of all values, not 0, and sends gradients to them. "
        "Where a bias is -inf for a whole row, a plain softmax makes it NaN.",
        lambda record: (
            record.check in ("M8.masked_rows", "M8.infinite_bias", "M5.alignment", "M7.broadcast")
            or (record.implementation == FUNCTION and record.check == "M9.padding_content")
            or "masked_rows_mean" in record.diagnosis.named
        ),
    ),
    Note(
        "Logits in half precision",
        "difference",
        "The product of query and key is rounded to the dtype of the inputs before the softmax. "
        "With logits far from 0 the error exceeds that of a softmax over float32 logits, which "
        "fused kernels and our definition have. gpt-oss also takes the softmax in that dtype. In a "
        "layer, the logits among padding that holds 1e4 overflow float16; that NaN is read by "
        "nobody, and reaches the gradients of all.",
        lambda record: (
            _is(*EAGER, dtype=HALF)(record)
            or _is("llama_attention_eager", "gpt_oss_attention", check="M9", dtype="float16")(
                record
            )
        ),
    ),
    Note(
        "No kernel for these strides",
        "difference",
        "The flash backend, asked for alone, refuses tensors whose last stride is not 1. Asked for "
        "nothing in particular, torch takes another backend.",
        _is("torch_sdpa_flash", check="S5.strides", told="No available kernel"),
    ),
)


def main() -> int:
    """Run, write, and say how many deviations have no note."""
    warnings.simplefilter("ignore")
    only = sys.argv[1:]
    reports = []
    for each in (*FOREIGN, *FOREIGN_LAYERS):
        if not only or each.name in only:
            reports.append((each, _report(each)))
            sys.stderr.write(f"{each.name}: {reports[-1][1].counts()}\n")
    open_ones = [record for _, report in reports for record in _red(report) if not note_of(record)]
    for record in open_ones:
        sys.stderr.write(f"NO NOTE: {record.id}: {record.told}\n")
    if not only:
        # where packages lie on this machine is nobody's concern
        placed = re.compile(r'File "[^"]*/(?:site-packages|contracts|core|plugins)/')
        PAGE.write_text(placed.sub('File "', page(reports)))
    return 1 if open_ones else 0


def _report(each: Foreign) -> Report:
    variant = each.variant()
    if not isinstance(each, ForeignLayer):
        return attnkit_contracts.check(variant, implementations=[FUNCTION])
    # registered, so that it can be pickled
    with attnkit.register(variant):
        return attnkit_contracts.check(variant)


def note_of(record: Record) -> Note | None:
    """Return the first note that accounts for a deviation."""
    return next((note for note in NOTES if note.accounts(record)), None)


def _red(report: Report) -> list[Record]:
    return [record for record in report.records if record.status in ("failed", "error")]


def page(reports: list[tuple[Foreign, Report]]) -> str:
    """Return the whole page."""
    header = reports[0][1].header
    packages = dict.fromkeys(each.package for each, _ in reports)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    lines = [
        "# Implementations by others",
        "",
        "The suite on code that nobody here wrote. `python docs/_build/generate_findings.py` makes "
        "this page; how each function and each layer is declared is in "
        "`docs/_build/foreign_functions.py` and `docs/_build/foreign_layers.py`.",
        "",
        f"{len(reports)} implementations; {versions}; Python {header.python}, device "
        f"{header.device}, tier {header.tier}, seed {header.seed}. Checks that passed, of those "
        "that came to a verdict; a check that a function refuses is no verdict.",
        "",
        "## Functions",
        "",
        "Judged against the float64 definition.",
        "",
        *_table(reports, layers=False),
        "",
        "## Layers",
        "",
        "Nobody here has a definition of these: they are judged by what must hold between calls.",
        "",
        *_table(reports, layers=True),
        "",
        "## What accounts for the deviations",
        "",
        *(line for note in NOTES for line in _section(note, reports)),
        *_conventions(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(reports: list[tuple[Foreign, Report]], *, layers: bool) -> list[str]:
    some = [pair for pair in reports if isinstance(pair[0], ForeignLayer) is layers]
    return [
        "| implementation | from | dtypes | passed | deviations |",
        "| --- | --- | --- | --- | --- |",
        *(_row(each, report) for each, report in some),
    ]


def _row(each: Foreign, report: Report) -> str:
    counts, red = report.counts(), _red(report)
    verdicts = report.header.executed_count + counts.get("error", 0)
    notes = list(dict.fromkeys(note_of(record) for record in red))
    told = "; ".join(_linked(note, red) for note in notes) or "none"
    dtypes = ", ".join(dict.fromkeys(record.dtype for record in report.records))
    passed = f"{counts.get('passed', 0)}/{verdicts}"
    return f"| `{each.name}` | {each.package}: `{each.source}` | {dtypes} | {passed} | {told} |"


def _linked(note: Note | None, red: list[Record]) -> str:
    count = sum(note_of(record) is note for record in red)
    if note is None:
        return f"**{count} without a note**"
    return f"[{note.title.lower()}](#{_anchor(note.title)}) ({count})"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("/", "")


def _section(note: Note, reports: list[tuple[Foreign, Report]]) -> list[str]:
    found = [record for _, report in reports for record in _red(report) if note_of(record) is note]
    if not found:
        return []
    checks = ", ".join(f"`{check}`" for check in dict.fromkeys(record.check for record in found))
    kind = KINDS[note.kind]
    shown = f" Script: [{note.script}]({FINDINGS}/{note.script})." if note.script else ""
    named = [each for each in found if each.diagnosis.is_named] or found
    best = min(named, key=lambda record: (len(record.smallest), record.id))
    return [
        f"### {note.title}",
        "",
        f"{kind} {note.text}{shown}",
        "",
        f"Shown by {checks}; for instance `{best.id}`:",
        "",
        "```text",
        *_wrapped(best.told),
        "```",
        "",
    ]


def _wrapped(text: str) -> list[str]:
    import textwrap

    return [part for line in text.splitlines() for part in textwrap.wrap(line, 96)]


def _conventions() -> list[str]:
    return [
        "## Conventions that had to be declared",
        "",
        "Not deviations, since the declaration says them; each would be one if it did not.",
        "",
        "- torch's `is_causal` is aligned upper-left; ours is lower-right. The script adapts the "
        "function without saying so, and the suite names the mistake: "
        f"[torch_causal_corner.py]({FINDINGS}/torch_causal_corner.py).",
        "- torch documents a mask beside `is_causal` as an error. Without gradients the default "
        "backend on the CPU applies both in silence; the math backend, which also takes over where "
        "the mask wants a gradient, raises: "
        f"[torch_mask_and_causal.py]({FINDINGS}/torch_mask_and_causal.py).",
        "- `multi_head_attention_forward` takes True for hidden, everything else here for visible.",
        "- Recurrences of transformers and flash-linear-attention scale queries by E ** -0.5 "
        "unasked; our default is 1.",
        "- torch.nn.MultiheadAttention takes True for hidden, and a mask for every head; timm's "
        "and x-transformers' layers take True for visible; those of transformers add the lowest "
        "number.",
        "- LlamaAttention over SDPA is causal where it gets no mask; over its eager function it is "
        "not.",
        "- FlexAttention has no backward on the CPU, so gradients are not promised.",
        "",
        f"torch threads while checks ran: 1; torch built as {torch.__version__}.",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
