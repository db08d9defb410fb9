"""``attnkit survey`` and ``attnkit swap`` on saved models: output and exit codes."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit
from attnkit.cli.app import run as run_app
from attnkit.swaps.receipts import Receipt
from attnkit_contracts.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = [f"model.layers.{number}.self_attn" for number in range(2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command line: exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["attnkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_app(app)
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return command


def test_survey_prints_the_sites(run: Any, saved: Path) -> None:
    code, out, _ = run("survey", saved)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [row[0] for row in rows if row[1] == "attention"] == LAYERS
    assert all(row[3].startswith("causal, GQA 4/2") for row in rows if row[1] == "attention")


def test_survey_as_json_is_the_survey(run: Any, saved: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    told = json.loads(run("survey", saved, "--json")[1])
    assert told == [site.model_dump(mode="json") for site in attnkit.survey(model)]
    assert told[0]["dtype"] == "bfloat16"


def test_survey_of_a_model_without_sites_is_found(run: Any, tmp_path: Path) -> None:
    sizes: Any = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path)
    code, out, _ = run("survey", tmp_path)
    assert code == 1
    assert out == "site\tkind\tlayer\tneeds\n"


def test_swap_by_name_prints_the_receipt(run: Any, saved: Path) -> None:
    code, out, _ = run("swap", saved, "flash")
    assert code == 0
    assert "LlamaForCausalLM: 2 sites swapped" in out
    assert all(path in out for path in LAYERS)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_swap_by_plan_file_prints_and_writes_the_receipt(
    run: Any, saved: Path, tmp_path: Path, suffix: str
) -> None:
    plan = tmp_path / f"plan{suffix}"
    plan.write_text('{"layers.1": {"variant": "flash", "implementation": "tiled"}}')
    code, out, _ = run("swap", saved, plan, "--json", "--output", tmp_path / "receipt.json")
    receipt = Receipt.model_validate_json(out)
    assert code == 0
    assert [site.path for site in receipt.sites] == LAYERS[1:]
    assert Receipt.load(tmp_path / "receipt.json") == receipt


def test_receipt_in_the_models_folder_is_re_applied(run: Any, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    assert run("swap", folder, "flash", "--output", folder)[0] == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert len(attnkit.reapply(model, folder).receipt.sites) == 2


def test_swap_leaves_the_folder_as_it_was(run: Any, saved: Path) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    run("swap", saved, "flash")
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ("self_attention", "num_heads: needs 4, offers 1"),
        ('{"variant": "sliding_window", "window_size": 4}', "accept is 'exact'"),
    ],
)
def test_refused_swap_is_found(run: Any, saved: Path, tmp_path: Path, plan: str, told: str) -> None:
    if plan.startswith("{"):
        (tmp_path / "plan.json").write_text(plan)
        plan = str(tmp_path / "plan.json")
    code, out, err = run("swap", saved, plan, "--output", tmp_path / "receipt.json")
    assert (code, out) == (1, "")
    assert told in err
    assert not (tmp_path / "receipt.json").exists()


def test_accept_allows_what_was_refused(run: Any, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"variant": "sliding_window", "window_size": 4}')
    assert run("swap", saved, tmp_path / "plan.json", "--accept", "different")[0] == 0


@pytest.mark.parametrize(
    ("plan", "options", "told"),
    [
        ("flahs", [], "Did you mean 'flash'"),
        ("missing.json", [], "missing.json: cannot be read"),
        ("flash", ["--accept", "any"], "accept must be one of exact, approximate, different"),
        ("flash", ["--output", "no/such/checkpoint"], "no such checkpoint"),
    ],
)
def test_wrong_command_is_told_from_a_refused_swap(
    run: Any, saved: Path, plan: str, options: list[str], told: str
) -> None:
    code, _, err = run("swap", saved, plan, *options)
    assert code == 2
    assert told in err


def test_folder_that_is_not_there_is_a_wrong_command(run: Any, tmp_path: Path) -> None:
    assert run("survey", tmp_path / "nothing")[0] == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "no host knows the model in this folder; hosts that open: .*transformers"),
        ('{"architecture": "vit"}', "no host knows the model in this folder"),
        ("{", r"config\.json: cannot be read"),
        ('{"model_type": "llama", "architectures": ["NoSuchModel"]}', "'NoSuchModel', which tran"),
        ('{"model_type": "llama", "architectures": ["LlamaModel"]}', "cannot load it"),
    ],
)
def test_folder_that_cannot_be_opened_is_a_wrong_command(
    run: Any, tmp_path: Path, config: str | None, told: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    code, _, err = run("survey", tmp_path)
    assert code == 2
    assert re.search(told, err)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", "no"),
        (
            "config.json",
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "wide"}',
        ),
    ],
)
def test_damaged_folder_is_a_wrong_command(
    run: Any, saved: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / name).write_text(content)
    code, _, told = run("survey", folder)
    assert code == 2
    assert "transformers cannot load it" in told


def test_written_swap_that_adds_weights_is_re_applied(
    run: Any, saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    code, _, _ = run("swap", folder, "gated_linear", "--accept", "different", "--output", folder)
    assert code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert len(attnkit.reapply(model, folder).receipt.added) == 2
