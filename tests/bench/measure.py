"""Measure what the project claims about speed and memory, and write it down.

    python tests/bench/measure.py --device cpu --record docs/records/cpu.md

Every figure is a ratio taken side by side (`rounds`), except import times. On a GPU the suite's
fast tier runs first, so that one call of this script there makes the whole record.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import attnkit
from attnkit_plugins.hosts.transformers.dispatch import attend

sys.path.insert(0, str(Path(__file__).parent))
from rounds import Comparison, compare
from whole_models import CASES, Case, whole_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def main() -> None:
    """Run all measurements and print, or write, one Markdown page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--record", type=Path, help="write the page here too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    lines = _heading(arguments.device)
    with torch.no_grad():
        for name in arguments.only or PARTS:
            lines += PARTS[name](arguments.device, arguments.rounds)
    page = "\n".join(lines) + "\n"
    sys.stdout.write(page)
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(page)


def _heading(device: str) -> list[str]:
    machine = torch.cuda.get_device_name() if device == "cuda" else _processor()
    command = " ".join(["python", "tests/bench/measure.py", *sys.argv[1:]])
    return [
        f"# Measured on {machine}",
        "",
        f"`{command}`",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s). Ratios: median of per-round ratios, quartiles in "
        "brackets; below 1 is faster than the baseline. The control is the baseline against "
        "itself; where it is off by more than 0.03 the row is marked noisy.",
        "",
    ]


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _imports(device: str, rounds: int) -> list[str]:
    script = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    rows = ["## Import and listing", "", "| what | seconds, best of 5 |", "|---|---|"]
    for module in ("attnkit", "torch"):
        command = [sys.executable, "-c", script.format(module)]
        runs = [float(subprocess.check_output(command)) for _ in range(5)]
        rows.append(f"| `import {module}` | {min(runs):.3f} |")
    command = [sys.executable, "-m", "attnkit_contracts", "list"]
    runs = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.check_output(command)
        runs.append(time.perf_counter() - begun)
    return [*rows, f"| `attnkit list`, the whole process | {min(runs):.3f} |", ""]


def _suite(device: str, rounds: int) -> list[str]:
    """Run the suite where its verdict is news: on a GPU."""
    if device == "cpu":
        return []
    command = [sys.executable, "-m", "attnkit_contracts", "check", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ["## Conformance, fast tier", "", "```", done.stdout.strip()[-6000:], "```", ""]


def _overhead(device: str, rounds: int) -> list[str]:
    q = torch.randn(1, 2, 4, 8, device=device)
    comparison = compare(
        "scaled_dot_product_attention",
        {
            "scaled_dot_product_attention": lambda: scaled_dot_product_attention(q, q, q),
            "attnkit.attention": lambda: attnkit.attention(
                q, q, q, variant="multi_head", implementation="sdpa"
            ),
        },
        rounds=rounds,
        device=device,
    )
    extra = (comparison.ratios["attnkit.attention"].median - 1) * comparison.seconds
    return [
        *_table("Choice of an implementation, (1, 2, 4, 8) float32", [("tiny", comparison)]),
        f"Overhead per call: {extra * 1e6:.1f} microseconds.",
        "",
    ]


def _swap(device: str, rounds: int) -> list[str]:
    """Compare swapped Llama layers with the model's own route through sdpa, at one token."""
    count = 32
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=512,
        intermediate_size=256,
        num_hidden_layers=count,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    query = torch.randn(1, 8, 1, 64, device=device)
    key, value = (torch.randn(1, 2, 33, 64, device=device) for _ in range(2))
    padded = torch.arange(33, device=device).view(1, 1, 1, 33) >= 3
    rows = []
    for variant in ("multi_head", "flash"):
        model = LlamaForCausalLM(config).eval().to(device)
        attnkit.swap(model, variant)
        layers = [layer.self_attn for layer in model.model.layers]
        for name, mask in (("no mask", None), ("padded", padded)):

            def run(function: Any, layers: Any = layers, mask: Any = mask) -> None:
                """Call the layers as a forward pass does: with one mask, made for this pass."""
                made = None if mask is None else mask.clone()
                for layer in layers:
                    function(layer, query, key, value, made, scaling=0.125)

            functions = {
                "sdpa": lambda run=run: run(sdpa_attention_forward),
                "swapped": lambda run=run: run(attend),
            }
            # a few microseconds of twenty: what is cheap to repeat is repeated
            found = compare("sdpa", functions, rounds=20 * rounds, device=device)
            extra = (found.ratios["swapped"].median - 1) * found.seconds / count
            rows.append((f"{variant}, {name}: {extra * 1e6:+.1f} microseconds a layer", found))
    return _table(f"{count} swapped Llama layers at one token, GQA 8/2, 33 keys, float32", rows)


def _flash(device: str, rounds: int) -> list[str]:
    mask, rows = attnkit.causal(), []
    for length in (512, 2048, 8192):
        q, k, v = (torch.randn(1, 8, length, 64, device=device) for _ in range(3))
        functions = {
            "fused": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, is_causal=True),
            "flash auto": lambda q=q, k=k, v=v: attnkit.attention(
                q, k, v, mask=mask, variant="flash"
            ),
            "flash tiled": lambda q=q, k=k, v=v: attnkit.attention(
                q, k, v, mask=mask, variant="flash", implementation="tiled"
            ),
        }
        rows.append((f"L = {length}", compare("fused", functions, rounds=rounds, device=device)))
    return _table("flash, causal, (1, 8, L, 64) float32, against torch's fused kernel", rows)


_PEAK = """
import sys, torch, attnkit
length, device = int(sys.argv[1]), sys.argv[2]
q, k, v = (torch.randn(1, 8, length, 64, device=device) for _ in range(3))
def run(n):
    with torch.no_grad():
        attnkit.attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], mask=attnkit.causal(), **CHOICE)
def peak():
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # getrusage would tell the peak of the process that this one was started from, if it was higher
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
run(256)  # what is loaded on the first call is no part of the call
before = peak()
run(length)
print(peak() - before)
"""


def _memory(device: str, rounds: int) -> list[str]:
    lines = ["## Extra memory of flash, causal, (1, 8, L, 64) float32: growth of the peak, MiB", ""]
    lines += [
        "| implementation | L = 4096 | 8192 | 16384 | all logits at 8192 |",
        "|---|---|---|---|---|",
    ]
    for name in ("auto", "tiled"):
        choice = f'CHOICE = {{"variant": "flash", "implementation": {name!r}}}'
        cells = []
        for length in (4096, 8192, 16384):
            command = [sys.executable, "-c", choice + _PEAK, str(length), device]
            cells.append(f"{int(subprocess.check_output(command)) / 2**20:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {8 * 8192**2 * 4 / 2**20:.0f} |")
    return [*lines, ""]


def _window(device: str, rounds: int) -> list[str]:
    rows = []
    for length, window in ((2048, 256), (8192, 256), (8192, 512)):
        q, k, v = (torch.randn(1, 8, length, 64, device=device) for _ in range(3))
        mask = attnkit.causal() & attnkit.sliding_window(window)
        dense = mask.to_bool(attnkit.masks.constructors.Sizes(1, 8, length, length), q.device)
        functions = {
            "dense mask": lambda q=q, k=k, v=v, dense=dense: scaled_dot_product_attention(
                q, k, v, attn_mask=dense
            ),
            "sliding_window": lambda q=q, k=k, v=v, mask=mask: attnkit.attention(
                q, k, v, mask=mask, variant="sliding_window"
            ),
        }
        found = compare("dense mask", functions, rounds=max(5, rounds // 3), device=device)
        rows.append((f"L = {length}, w = {window}", found))
    return _table("sliding_window, causal, (1, 8, L, 64) float32, against SDPA with a mask", rows)


def _mixture(device: str, rounds: int) -> list[str]:
    rows = []
    for experts, width, hidden, tokens in ((8, 512, 1024, 2048), (8, 512, 1024, 1)):
        config = MixtralConfig(
            hidden_size=width, intermediate_size=hidden, num_local_experts=experts
        )
        config._experts_implementation = "eager"
        theirs = MixtralSparseMoeBlock(config).to(device)
        ours = attnkit.create(
            "moe", embed_dim=width, hidden_dim=hidden, num_experts=experts, device=device
        )
        for each in theirs.parameters():
            torch.nn.init.normal_(each, std=0.02)
        ours.router.weight.copy_(theirs.gate.weight)
        ours.gate_up_proj.copy_(theirs.experts.gate_up_proj)
        ours.down_proj.copy_(theirs.experts.down_proj)
        x = torch.randn(1, tokens, width, device=device)
        functions = {
            "transformers": lambda theirs=theirs, x=x: theirs(x),
            "moe": lambda ours=ours, x=x: ours(x),
        }
        found = compare("transformers", functions, rounds=rounds, device=device)
        rows.append((f"E = {experts}, D = {width}, F = {hidden}, T = {tokens}", found))
    return _table("moe, k = 2, float32, against transformers' eager Mixtral experts", rows)


def _recurrences(device: str, rounds: int) -> list[str]:
    lines = ["## Time per token of recurrences, relative to L = 1024", ""]
    lines += ["| variant | L | ratio per token | |", "|---|---|---|---|"]
    for name, arguments in _recurrence_calls(device):
        short = arguments(1024)
        for length in (2048, 4096, 16384):
            whole = arguments(length)
            functions = {
                "short": lambda short=short, name=name: attnkit.recurrence(variant=name, **short),
                "long": lambda whole=whole, name=name: attnkit.recurrence(variant=name, **whole),
            }
            found = compare("short", functions, rounds=max(5, rounds // 2), device=device)
            per_token = found.ratios["long"].median * 1024 / length
            noisy = "" if found.is_sound else "noisy"
            lines.append(f"| {name} | {length} | {per_token:.3f} | {noisy} |")
    return [*lines, ""]


def _recurrence_calls(device: str) -> Iterator[tuple[str, object]]:
    def linear(length: int) -> dict[str, object]:
        q, k, v = (torch.randn(1, 8, length, 64, device=device) for _ in range(3))
        return {"query": q, "key": k, "value": v}

    def decayed(length: int) -> dict[str, object]:
        gate = -torch.rand(1, 8, length, device=device)
        return {**linear(length), "log_decay": gate}

    yield "linear", linear
    yield "gated_linear", decayed
    yield "state_space", decayed


def _whole(case: Case, device: str, rounds: int) -> list[str]:
    title = f"{case.name}: forward pass of the whole model, one sequence, random weights"
    return _table(title, whole_model(case, device, rounds))


def _table(title: str, rows: list[tuple[str, Comparison]]) -> list[str]:
    names = list(rows[0][1].ratios)
    lines = [f"## {title}", "", f"| case | baseline | {' | '.join(names)} | |"]
    lines.append("|---|---|" + "---|" * len(names) + "---|")
    for case, found in rows:
        cells = " | ".join(str(found.ratios[name]) for name in names)
        noisy = "" if found.is_sound else "noisy"
        lines.append(f"| {case} | {found.seconds * 1e3:.3f} ms | {cells} | {noisy} |")
    return [*lines, ""]


PARTS: Mapping[str, Callable[[str, int], list[str]]] = {
    "imports": _imports,
    "suite": _suite,
    "overhead": _overhead,
    "swap": _swap,
    "flash": _flash,
    "memory": _memory,
    "window": _window,
    "mixture": _mixture,
    "recurrences": _recurrences,
    **{name: partial(_whole, case) for name, case in CASES.items()},
}

if __name__ == "__main__":
    main()
