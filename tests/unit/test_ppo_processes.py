"""PPO in two processes on the CPU, under `accelerate launch`, is as one process with all of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from ppo_helpers import same
from transformers import AutoModelForSequenceClassification

from rlhf_helpers import processes
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import write_jsonl
from rlhf_helpers.training.checkpoints import load_checkpoint, newest_checkpoint

pytestmark = pytest.mark.slow
PROMPTS = ["A post about my cat [summary]:", "Why not? [summary]:", "x", "My boss is late"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A rollout to share, and an untrained reward model."""
    folder, base = tmp_path_factory.mktemp("two"), Scale("smoke").base_model
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")
        matmul_precision.cache_clear()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        rollout = two_processes.make_trainer().rollout(PROMPTS)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    matmul_precision.cache_clear()
    torch.save({"rollout": rollout, "scores": torch.arange(8.0)}, folder / "step.pt")
    write_jsonl(folder / "prompts.jsonl", [{"input_text": prompt} for prompt in PROMPTS])
    model.save_pretrained(folder / "reward")
    load_tokenizer(base).save_pretrained(folder / "reward")
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    """What both processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--main_process_port={port}",
    ]
    environment = os.environ | {"RLHF_MATMUL_PRECISION": "highest", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*launch, two_processes.__file__, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_the_launcher_s_processes_have_found_each_other(ranks):
    assert [found["count"] for found in ranks] == [2, 2]


def test_two_halves_of_a_batch_make_the_step_of_the_whole(ranks, folder, monkeypatch):
    """Whitening, losses, gradients and statistics are those of all responses together."""
    monkeypatch.setenv("RLHF_MATMUL_PRECISION", "highest")
    alone = two_processes.one_step(folder)
    assert ranks[0]["step"]["tokens"] != ranks[1]["step"]["tokens"]  # so their weights matter
    for found in ranks:
        ours = {k: v for k, v in found["step"]["stats"].items() if "seconds" not in k}
        theirs = {k: v for k, v in alone["stats"].items() if "seconds" not in k}
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert found["step"]["kl_coef"] == pytest.approx(alone["kl_coef"], rel=1e-6)
        for name, gradient in alone["gradients"].items():
            difference = (found["step"]["gradients"][name] - gradient).norm()
            # All together have norm 1; a key's bias has none but for rounding.
            assert difference < 1e-5 * gradient.norm() + 1e-7, name
    assert same(ranks[0]["step"]["weights"], ranks[1]["step"]["weights"])


def test_both_ranks_end_with_the_same_weights_after_as_many_steps_as_one_would_take(ranks):
    first, second = (found["run"] for found in ranks)
    assert first["optimizer_steps"] == second["optimizer_steps"] == 3 * 2 * 2
    assert same(first["weights"], second["weights"])
    assert same(first["critic"], second["critic"])
    for ours, theirs in zip(first["history"], second["history"], strict=True):
        shared = {key for key in ours if "seconds" not in key}
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


def test_each_process_samples_for_itself(ranks):
    for ours, theirs in zip(*(found["run"]["responses"] for found in ranks), strict=True):
        assert len(ours) == len(theirs) == 4
        assert ours != theirs


def test_the_first_process_writes_the_files_and_every_process_s_random_numbers(ranks, folder):
    run = folder / "run"
    assert {path.name for path in run.iterdir()} >= {"metrics.json", "model.safetensors", "logs"}
    assert len(list((run / "logs").iterdir())) == 1
    own, other = load_checkpoint(newest_checkpoint(run), torch.device("cpu"))["trainer"][
        "generators"
    ]
    assert not own[0].equal(other[0])


def test_a_mini_batch_must_be_shareable(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert processes.shares(32, parts=2, group=4) == (16, 8)
    with pytest.raises(ValueError, match="mini_batch_size 12 must be a multiple of 2 processes"):
        processes.shares(12, parts=1, group=4)
