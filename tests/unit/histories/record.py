"""Records the histories beside it: `python record.py [name ...]`, a minute or two a run.

One thing makes each run go wrong: the base model under PPO, 32 responses a step, gold for a reward
and the course's settings where nothing else is said. The healthy ones and `reward_hacking` take
the SFT and reward model that L6 and L7 train. `healthy_course` is older.
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import torch

from rlhf_helpers import reward_model
from rlhf_helpers.little_world.annotators import gold_scores
from rlhf_helpers.logprobs import response_logprobs
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.ppo import PPOTrainer, Rollout, prompt_batches
from rlhf_helpers.scales import HACKING, Scale
from rlhf_helpers.schemas import read_prompts, read_rankings, write_jsonl

COURSE = Scale("tiny", live=True)
ANSWER = "Someone is driving me crazy. Any advice?"


class StaleSampler(PPOTrainer):
    """The first policy goes on sampling, as where a server never gets the new weights."""

    def rollout(self, prompts: list[str], *records: object) -> Rollout:
        policy, self.policy = self.policy, self.reference
        rollout = super().rollout(prompts, *records)
        self.policy = policy
        return replace(rollout, logprobs=response_logprobs(policy, rollout))


def ppo(
    reward: Callable[[Rollout], list[float]] = lambda rollout: gold_scores(rollout.texts),
    trainer_class: type[PPOTrainer] = PPOTrainer,
    model: Path = COURSE.base_model,
    dtype: torch.dtype = torch.float32,
    **changes: float,
) -> list[dict]:
    settings = {"batch_size": 32, "mini_batch_size": 16, "steps": 24} | changes
    config = COURSE.config("ppo", **settings)
    trainer = trainer_class(load_policy(model), load_tokenizer(model), config)
    trainer.policy.to(dtype)  # the trainer itself would refuse weights of 16 bits
    history = []
    for prompts in prompt_batches(read_prompts(config.data), config):
        rollout = trainer.rollout(prompts)
        stats = trainer.step(rollout, reward(rollout))
        history.append(stats | {"gold": fmean(gold_scores(rollout.texts))})
    return history


def course(**changes: float) -> list[dict]:
    score = reward_model.RewardModel.from_pretrained(COURSE.dir("reward"))
    return ppo(lambda rollout: score(rollout.texts), model=COURSE.dir("sft"), **changes)


def healthy_reward() -> list[dict]:
    return json.loads((COURSE.dir("reward") / "metrics.json").read_text())["history"]


def drawn_by_lot() -> list[dict]:
    """A reward model, of rankings that say nothing."""
    records, rng = read_rankings(COURSE.data("rankings", "train"))[:800], random.Random(0)
    for record in records:
        rng.shuffle(record["ranking"])
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rankings.jsonl"
        write_jsonl(data, records)
        config = COURSE.config("reward", data=data, output_dir=Path(folder) / "reward")
        return reward_model.train(config).history


def half_precision() -> list[dict]:
    """AdamW on float16 weights, in a trainer that does not stop, as ours does, at a NaN.

    It is small, since a CPU is slow at float16.
    """
    small = {"batch_size": 8, "mini_batch_size": 4, "max_new_tokens": 16, "steps": 12}
    with patch("rlhf_helpers.ppo.trainer.stop_unless_finite"):
        return ppo(dtype=torch.float16, **small)


RUNS: dict[str, Callable[[], list[dict]]] = {
    **{f"healthy_{seed}": lambda seed=seed: course(seed=seed) for seed in range(5)},
    "healthy_reward": healthy_reward,
    "reward_hacking": lambda: course(**HACKING),
    "learning_rate_high": lambda: ppo(learning_rate=5e-3, steps=8),
    "learning_rate_low": lambda: ppo(learning_rate=1e-7, steps=8),
    "many_epochs": lambda: ppo(ppo_epochs=6, learning_rate=2e-3, steps=12),
    "stale_sampler": lambda: ppo(trainer_class=StaleSampler),
    "no_value_loss": lambda: ppo(vf_coef=0.0, value_learning_rate=0.0, steps=16),
    "one_answer_rewarded": lambda: ppo(
        lambda rollout: [SequenceMatcher(None, ANSWER, text).ratio() for text in rollout.responses],
        kl_coef=0.0,
        learning_rate=1e-3,
    ),
    "words_rewarded": lambda: ppo(
        lambda rollout: [len(text.split()) / 10 for text in rollout.responses],
        missing_eos_penalty=0.0,
        learning_rate=5e-4,
    ),
    "drawn_by_lot": drawn_by_lot,
    "half_precision": half_precision,
}


def rounded(row: dict) -> str:
    kept = {key: value for key, value in row.items() if not key.startswith("seconds")}
    return json.dumps({key: float(f"{value:.4g}") for key, value in kept.items()}) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or RUNS:
        path = Path(__file__).with_name(f"{name}.jsonl")
        path.write_text("".join(map(rounded, RUNS[name]())), encoding="utf-8")
