"""The whole chain at `tiny` with three seeds: SFT, reward model, PPO, and reward hacking.

    python benchmarks/chain.py [--seeds 0 1 2]

Takes about seven minutes a seed on two cores. Prints the table that `benchmarks/chain.md` keeps and
`benchmarks/README.md` shows; everything is measured on the test split.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy import stats

from rlhf_helpers import models, ppo, reward_model, schemas, sft
from rlhf_helpers.evaluation import evaluate_policy, evaluate_reward_model, standard_error
from rlhf_helpers.scales import HACKING, Scale

PROMPTS = 512


def measure_seed(seed: int) -> dict[str, float]:
    """Train and evaluate the chain with one seed; one row of the table."""
    scale = Scale("tiny", seed=seed)
    stages = {
        "sft": sft.train(scale.config("sft")),
        "reward": reward_model.train(scale.config("reward")),
        "ppo": ppo.train(scale.config("ppo")),
    }
    for kl_coef, name in ((0.0, "hacked"), (scale.config("ppo").kl_coef, "cured")):
        settings = {**HACKING, "kl_coef": kl_coef, "output_dir": scale.dir(name)}
        stages[name] = ppo.train(scale.config("ppo", **settings))

    scorer = reward_model.RewardModel.from_pretrained(scale.dir("reward"))
    test_pairs = schemas.read_preferences(scale.data("preferences", "test"))
    accuracy, _ = evaluate_reward_model(scorer, test_pairs)
    row = {key: value for key, value in accuracy.items() if key.startswith("accuracy")}
    reports, tables = {}, {}
    for name in ("sft", "ppo", "hacked", "cured"):
        reports[name], tables[name] = evaluate(scale, name, scorer, 1.0)
    for name in ("sft", "ppo"):
        row[f"gold_{name}_greedy"] = evaluate(scale, name, scorer, 0.0)[0]["gold"]
    gain = tables["ppo"]["gold"] - tables["sft"]["gold"]
    row |= {f"gold_{name}": report["gold"] for name, report in reports.items()}
    row |= {f"wrong_{name}": reports[name]["wrong"] for name in ("sft", "ppo")}
    row |= {
        "gold_gain": gain.mean(),
        "gold_gain_se": standard_error(gain),
        "reward_gain_sd": reports["ppo"]["reward"] - reports["sft"]["reward"],
        "kl": reports["ppo"]["kl"],
        "eos_rate": reports["ppo"]["eos_rate"],
        "hacked_reward_gain_sd": reports["hacked"]["reward"] - reports["sft"]["reward"],
        "hacked_kl": reports["hacked"]["kl"],
    }
    return row | {f"seconds_{name}": stages[name].metrics["seconds"] for name in stages}


def evaluate(scale: Scale, stage: str, scorer: reward_model.RewardModel, temperature: float):
    """`evaluate_policy` on the test prompts."""
    prompts = schemas.read_prompts(scale.data("prompts", "test"))[:PROMPTS]
    policy = models.load_policy(scale.dir(stage))
    tokenizer = models.load_tokenizer(scale.dir(stage))
    reference = models.load_policy(scale.dir("sft"))
    return evaluate_policy(
        policy,
        tokenizer,
        prompts,
        reward_model=scorer,
        reference=reference,
        temperature=temperature,
        seed=scale.seed,
    )


def main(measure: Callable[[int], dict[str, float]], script: str, doc: str) -> None:
    """Print and write the table of a script: a column a seed, their mean and its 95% interval."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    table = pd.DataFrame({f"seed {seed}": measure(seed) for seed in seeds})
    mean, spread = table.mean(axis=1), table.std(axis=1)
    table["mean"] = mean
    table["± 95%"] = stats.t.ppf(0.975, len(seeds) - 1) * spread / math.sqrt(len(seeds))
    text = table.round(3).to_markdown() + "\n"
    print(text)
    Path(script).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(measure_seed, __file__, __doc__)
