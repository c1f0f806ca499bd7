"""Every way from preferences to a policy at `tiny`, on the same data, over three seeds.

    python benchmarks/alternatives.py [--seeds 0 1 2]

Trains what is not in `runs/` yet (about eight minutes a seed on two cores) with the settings of
lessons L6 to L11, and prints the table for `benchmarks/alternatives.md`: means over the
seeds with 95% intervals (Student's t), measured on the test prompts at temperatures 1, 0.4 and 0,
beside the SFT model at its best temperature, which needs no preference at all.
"""

import argparse
import math
from pathlib import Path

import pandas as pd
from scipy import stats

from rlhf_helpers import models, rest, reward_model, schemas
from rlhf_helpers.evaluation import best_of_n_row, compare_methods, temperature_curve
from rlhf_helpers.scales import Scale
from rlhf_helpers.stages import train_missing

PROMPTS, PROMPTS_BEST_OF_N = 512, 256
LOWER = (0.4, 0.0)  # temperatures, besides 1


def tune_on_best_of_4(run: Scale) -> None:
    """The base model, tuned on the best of 4 samples to the prompts of the first Grow step."""
    tokenizer = models.load_tokenizer(run.dir("sft"))
    scorer = reward_model.RewardModel.from_pretrained(run.dir("reward"))
    asked = schemas.read_prompts(run.data("prompts", "train"))[: run.config("rest").grow_prompts]
    policy, folder = models.load_policy(run.dir("sft")), run.dir("rest/best_of_4")
    samples = rest.grow(policy, tokenizer, scorer, asked, seed=run.seed + 1)
    files = {"data": folder / "kept.jsonl", "output_dir": folder}
    rest.improve(rest.best_of(samples, 4), run.config("sft", epochs=4, **files))


def measure_seed(seed: int) -> pd.DataFrame:
    """A row a method; see `compare_methods`."""
    run = Scale("tiny", seed=seed)
    train_missing(run, "sft", "reward", "ppo", "dpo", "rest", "rlaif")
    folders = {
        "SFT on best of 4": "rest/best_of_4",
        "PPO": "ppo",
        "DPO": "dpo",
        "ReST": "rest",
        "RLAIF": "rlaif",
    }
    if not (run.dir("rest/best_of_4") / "metrics.json").exists():
        tune_on_best_of_4(run)
    policies = {"base model": run.base_model, "SFT": run.dir("sft")}
    policies |= {name: run.dir(folder) for name, folder in folders.items()}
    prompts = schemas.read_prompts(run.data("prompts", "test"))[:PROMPTS]
    table = compare_methods(policies, run.dir("sft"), prompts, seed=seed)
    for temperature in LOWER:
        lower = compare_methods(
            policies, run.dir("sft"), prompts, temperature=temperature, seed=seed
        )
        table[f"gold_{temperature:g}"] = lower["gold"]
    sft = models.load_policy(run.dir("sft")), models.load_tokenizer(run.dir("sft"))
    curve = temperature_curve(*sft, prompts, seed=seed)
    table.loc["SFT at its best T"] = {"gold": curve["gold"].max()}
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
    columns = {
        "gold": "gold, T = 1",
        **{f"gold_{t:g}": f"T = {t:g}" for t in LOWER},
        "gain": "gain over SFT",
        "win_rate": "win rate",
        "kl": "KL (nats)",
        "words": "words",
    }
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
