"""What each process does in `test_ppo_processes`, under a launcher: python two_processes.py FOLDER.

`step.pt` in the folder holds a rollout and its scores, of which every process takes its share.
"""

import sys
from pathlib import Path

import torch

from rlhf_helpers import ppo, processes
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.ppo import PPOConfig, PPOTrainer, Rollout
from rlhf_helpers.scales import Scale

SETTINGS = {
    "batch_size": 8,
    "mini_batch_size": 8,
    "samples_per_prompt": 2,
    "steps": 3,
    "min_new_tokens": 1,
    "draw_lengths": True,
    "max_new_tokens": 8,  # processes hold unequal numbers of tokens
    "warmup_steps": 1,
    "ppo_epochs": 1,
    "learning_rate": 1e-3,
    "ptx_coef": 0.1,
    "adaptive_kl": True,
}
DOCUMENTS = ["One document, so that all draw the same."]


def make_trainer() -> PPOTrainer:
    base = Scale("smoke").base_model
    return PPOTrainer(
        load_policy(base), load_tokenizer(base), PPOConfig(**SETTINGS), documents=DOCUMENTS
    )


def share(rollout: Rollout) -> Rollout:
    """Every other prompt's responses."""
    rows = torch.arange(8).view(4, 2)[processes.rank() :: processes.count()].flatten()
    return rollout.select(rows)


def one_step(folder: Path) -> dict:
    """What a step on this process's share of a given rollout has done."""
    trainer = make_trainer()
    state = torch.load(folder / "step.pt", weights_only=False)
    rollout = share(state["rollout"])
    rows = torch.arange(8).view(4, 2)[processes.rank() :: processes.count()].flatten()
    stats = trainer.step(rollout, state["scores"][rows])
    trained = list(torch.nn.ModuleList([trainer.policy, trainer.value_head]).named_parameters())
    return {
        "tokens": int(rollout.response_mask.sum()),
        "stats": stats,
        "kl_coef": trainer.kl_coef,
        "gradients": {name: p.grad for name, p in trained},
        "weights": {name: p.detach() for name, p in trained},
    }


def whole_run(folder: Path) -> dict:
    """A smoke run with checkpoints, with what this process saw of it."""
    steps, trainers, seen = [], [], []
    adam, rollout = torch.optim.AdamW.step, PPOTrainer.rollout

    def counted(self, *arguments, **keywords):
        steps.append(1)
        return adam(self, *arguments, **keywords)

    def watched(self, *arguments):
        trainers.append(self)
        seen.append(rollout(self, *arguments))
        return seen[-1]

    torch.optim.AdamW.step, PPOTrainer.rollout = counted, watched
    changes = {
        "reward_model": folder / "reward",
        "model": Scale("smoke").base_model,
        "data": folder / "prompts.jsonl",
        "critic": "separate",
    }
    config = Scale("smoke").config("ppo", output_dir=folder / "run", steps=3, **changes)
    history = ppo.train(config).history
    return {
        "optimizer_steps": len(steps),
        "history": history,
        "responses": [rollout.responses for rollout in seen],
        "weights": {name: p.detach() for name, p in trainers[-1].policy.named_parameters()},
        "critic": {name: p.detach() for name, p in trainers[-1].critic.named_parameters()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.start()
    folder = Path(sys.argv[1])
    found = {"count": processes.count(), "step": one_step(folder), "run": whole_run(folder)}
    torch.save(found, folder / f"rank{processes.rank()}.pt")
