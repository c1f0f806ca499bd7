"""The pipeline's training in two processes on the CPU, started by `accelerate launch`."""

import json

import pytest

from rlhf_helpers.pipelines import stages
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
    """The folders of every stage, trained one after the other in one process, and in two."""
    root = tmp_path_factory.mktemp("launched")
    base = str(Scale("smoke").base_model)
    models = {
        "sft": {},
        "reward": {"model": base, "sft_model": base, "pairs": 64},
        "dpo": {"model": base},
        "ppo": {"model": base, "reward_model": str(root / "reward1")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")
        patch.setenv("OMP_NUM_THREADS", "1")
        for stage, given in models.items():
            for processes in (1, 2):
                folder = str(root / f"{stage}{processes}")
                stages.train(stage, folder, "smoke", 0, processes, **given)
    return root


def history(folder) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())["history"]


@pytest.mark.parametrize("stage", MEASURED)
def test_two_processes_learn_as_one_does_from_the_same_batches(trained, stage):
    """And they measure the same: what is logged is of all records of a batch."""
    one, two = history(trained / f"{stage}1"), history(trained / f"{stage}2")
    assert len(one) > 1
    for name in ("loss", "grad_norm", *MEASURED[stage]):
        values = [row[name] for row in two]
        assert values == pytest.approx([row[name] for row in one], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("stage", [*MEASURED, "ppo"])
def test_the_first_process_alone_writes(trained, stage):
    folder = trained / f"{stage}2"
    assert len(list((folder / "logs").iterdir())) == 1
    assert (folder / "model.safetensors").exists()
    assert len(history(folder)) == len(history(trained / f"{stage}1"))
