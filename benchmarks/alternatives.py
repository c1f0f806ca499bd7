"""Every way from preferences to a policy at `tiny`, on the same data, over three seeds.

    python benchmarks/alternatives.py [--seeds 0 1 2]

Trains what is not in `runs/` yet (about eight minutes a seed on two cores) with the settings of
lessons L6 to L11, and prints the table that `benchmarks/alternatives.md` keeps: means over the
seeds with 95% intervals (Student's t), measured on the test prompts.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from rlhf_helpers import models, ppo, rest, reward_model, rlaif, schemas
from rlhf_helpers.evaluation import best_of_n_row, compare_methods
from rlhf_helpers.scales import Scale
from rlhf_helpers.training import train_missing

PROMPTS, PROMPTS_BEST_OF_N = 512, 256
GROWN, LABELS = 400, 800  # prompts a Grow step; pairs that the AI labels


def train_rest(run: Scale) -> None:
    """The loop of L10, and the base model tuned on the best of 4 of its first samples."""
    tokenizer = models.load_tokenizer(run.dir("sft"))
    scorer = reward_model.RewardModel.from_pretrained(run.dir("reward"))
    prompts = schemas.read_prompts(run.data("prompts", "train"))
    model, rate = run.dir("sft"), 3e-4
    for g in (1, 2):
        asked = prompts[(g - 1) * GROWN : g * GROWN]
        policy = models.load_policy(model)
        samples = rest.grow(policy, tokenizer, scorer, asked, seed=run.seed + g)
        if g == 1:
            tune(run, "rest/best_of_4", rest.best_of(samples, 4), epochs=4)
        for share in (0.5, 0.25):
            kept = rest.above(samples, samples["advantage"].quantile(1 - share), by="advantage")
            settings = {"model": model, "learning_rate": rate, "warmup_steps": 5}
            model = tune(run, f"rest/grow_{g}_best_{share}", kept, **settings)
            rate /= 1.5


def tune(run: Scale, name: str, kept: pd.DataFrame, **settings: Any) -> Path:
    folder = run.dir(name)
    files = {"data": folder / "kept.jsonl", "output_dir": folder}
    return rest.improve(kept, run.config("sft", **files, **settings)).output_dir


def train_rlaif(run: Scale) -> None:
    """The steps of L11."""
    labels, reward = run.dir("rlaif_labels") / "train.jsonl", run.dir("rlaif_reward")
    labeller = rlaif.ai_labeller(rlaif.read_constitution())
    rlaif.label_file(labeller, run.data("preferences", "train"), labels, LABELS)
    reward_model.train(run.config("reward", data=labels, pairs=LABELS, output_dir=reward))
    ppo.train(run.config("ppo", reward_model=reward, output_dir=run.dir("rlaif"), steps=20))


def measure_seed(seed: int) -> pd.DataFrame:
    """A row a method; see `compare_methods`."""
    run = Scale("tiny", seed=seed)
    train_missing(run, "sft", "reward", "ppo", "dpo")
    folders = {"SFT on best of 4": "rest/best_of_4", "PPO": "ppo", "DPO": "dpo",
               "ReST": "rest/grow_2_best_0.25", "RLAIF": "rlaif"}  # fmt: skip
    for method, train in (("ReST", train_rest), ("RLAIF", train_rlaif)):
        if not (run.dir(folders[method]) / "metrics.json").exists():
            train(run)
    policies = {"base model": run.base_model, "SFT": run.dir("sft")}
    policies |= {name: run.dir(folder) for name, folder in folders.items()}
    prompts = schemas.read_prompts(run.data("prompts", "test"))[:PROMPTS]
    table = compare_methods(policies, run.dir("sft"), prompts, seed=seed)
    scorer = reward_model.RewardModel.from_pretrained(run.dir("reward"))
    few = prompts[:PROMPTS_BEST_OF_N]
    for n in (4, 16):
        table.loc[f"best of {n}"] = best_of_n_row(run.dir("sft"), scorer, few, n, seed=seed)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    tables = pd.concat({seed: measure_seed(seed) for seed in seeds}, names=["seed", "method"])
    by_method = tables.groupby("method", sort=False)
    mean = by_method.mean()
    margin = stats.t.ppf(0.975, len(seeds) - 1) * by_method.std() / math.sqrt(len(seeds))
    columns = {"gold": "gold", "gain": "gain over SFT", "win_rate": "win rate", "kl": "KL (nats)",
               "words": "words"}  # fmt: skip
    shown = pd.DataFrame(
        {
            title: mean[name].map("{:.2f}".format) + " ± " + margin[name].map("{:.2f}".format)
            for name, title in columns.items()
        }
    )
    for seed in seeds:
        shown[f"gain, seed {seed}"] = tables.loc[seed]["gain"].map("{:+.2f}".format)
    text = shown.to_markdown() + "\n"
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
