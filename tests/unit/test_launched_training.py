"""The pipeline's training in two processes on the CPU, started by `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_helpers.commands.main import main
from rlhf_helpers.pipelines import stages
from rlhf_helpers.runs import project_root
from rlhf_helpers.scales import Scale

pytestmark = pytest.mark.slow

# what TRL's trainers log besides the loss
MEASURED = {
    "sft": ("entropy", "mean_token_accuracy"),
    "reward": ("accuracy", "margin"),
    "dpo": ("rewards/accuracies", "rewards/margins"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of every stage, trained in one process, and in two."""
    root = tmp_path_factory.mktemp("launched")
    base = str(Scale("smoke").base_model)
    models = {
        "sft": {},
        "reward": {"model": base, "sft_model": base, "pairs": 64, "head": "last_token"},
        "dpo": {"model": base},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")
        patch.setenv("OMP_NUM_THREADS", "1")
        for stage, given in models.items():
            stages.train(stage, str(root / f"{stage}1"), "smoke", 0, **given)
        launch_all(root, models)
        launch_sharded(root / "sft_fsdp")
    return root


TRAIN = """
import json, sys
from rlhf_helpers.scales import Scale
from rlhf_helpers.stages import train_stage
for stage, changes in json.loads(sys.argv[1]).items():
    train_stage(stage, Scale("smoke").config(stage, **changes))
"""


def launch_all(root: Path, models: dict[str, dict]) -> None:
    """Train all stages in two processes, which are started once, as the pipeline starts them."""
    (root / "train.py").write_text(TRAIN)
    changes = {stage: given | {"output_dir": f"{root}/{stage}2"} for stage, given in models.items()}
    smoke = Scale("smoke")
    command = stages.launch_command("sft", smoke, smoke.config("sft"), 2)
    options = command[command.index("launch") + 1 : command.index("rlhf_helpers") - 1]
    launch(*options, root / "train.py", json.dumps(changes))


def launch_sharded(folder: Path) -> None:
    """SFT with the weights spread over two processes, by the configuration that is shipped."""
    config = project_root() / "scripts" / "accelerate" / "fsdp.yaml"
    options = f"--config_file {config} --mixed_precision no --num_processes 2"
    train = f"-m rlhf_helpers train sft --scale smoke --output-dir {folder}"
    launch(*options.split(), *train.split())


def launch(*words: object) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def history(folder) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())["history"]


@pytest.mark.parametrize("stage", MEASURED)
def test_two_processes_learn_as_one_does_from_the_same_batches(trained, stage):
    """And they measure the same: what is logged is of all records of a batch."""
    one, two = history(trained / f"{stage}1"), history(trained / f"{stage}2")
    assert len(one) > 1
    for name in ("loss", "grad_norm", *MEASURED[stage]):
        # The first learning rate is 0, so at DPO's first two steps every margin is 0: rounding
        # decides which of them count as right.
        start = 2 * int(name == "rewards/accuracies")
        values, expected = ([row[name] for row in rows[start:]] for rows in (two, one))
        assert values and values == pytest.approx(expected, rel=1e-3, abs=1e-4), name


def test_weights_spread_over_processes_learn_the_same_and_are_saved_whole(trained):
    one, spread = (history(trained / name) for name in ("sft1", "sft_fsdp"))
    assert [row["loss"] for row in spread] == pytest.approx([row["loss"] for row in one], rel=1e-3)
    expected, saved = (load_file(trained / f / "model.safetensors") for f in ("sft1", "sft_fsdp"))
    assert expected.keys() == saved.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", MEASURED)
def test_the_first_process_alone_writes(trained, stage):
    folder = trained / f"{stage}2"
    assert len(list((folder / "logs").iterdir())) == 1
    assert (folder / "model.safetensors").exists()
    assert len(history(folder)) == len(history(trained / f"{stage}1"))


def test_a_step_of_the_pipeline_takes_its_model_from_the_processes_it_launches(
    tmp_path, monkeypatch
):
    """The command is run here instead: what it trains is copied, with its metrics."""

    def run_here(command: list[str], check: bool) -> None:
        assert check and command[command.index("--num_processes") + 1] == "2"
        assert main(command[command.index("rlhf_helpers") + 1 :]) == 0

    monkeypatch.setattr(stages.subprocess, "run", run_here)
    metrics = stages.train("sft", str(tmp_path / "sft"), "smoke", 3, processes=2)
    report = json.loads((tmp_path / "sft" / "metrics.json").read_text())
    assert report["metrics"] == metrics and report["config"]["seed"] == 3
    assert (tmp_path / "sft" / "model.safetensors").exists()
