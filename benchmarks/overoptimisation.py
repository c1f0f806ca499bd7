"""What tames over-optimisation, at `tiny`, over three seeds of PPO: gold against KL, step by step.

    python benchmarks/overoptimisation.py [--seeds 0 1 2] [--methods none "KL price" …]

All runs start from one SFT model (seed 0) and take the settings that hack the reward model
(`scales.HACKING`); each changes one thing. Four reward models, trained on the same rankings with
other seeds: the first is the judge, the first three are the ensemble, and the policy never sees the
fourth, which stops early. Gold and KL are measured on held-out prompts every few steps. What is in
`runs/` is not trained again. Prints the table that `benchmarks/overoptimisation.md` keeps, and
writes the curves beside the models.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from scipy import stats
from transformers import PreTrainedModel

from rlhf_helpers import reward_model, schemas
from rlhf_helpers.evaluation import evaluate_policy
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.models.averaging import average_weights
from rlhf_helpers.ppo import PPOTrainer
from rlhf_helpers.ppo.early_stop import EarlyStop
from rlhf_helpers.ppo.run import formatted, record_batches
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.rewards import Ensemble, Reward, Rewards, words_over
from rlhf_helpers.scales import HACKING, Scale
from rlhf_helpers.stages import train_missing

RUN = Scale("tiny")
EVERY, PROMPTS = 5, 128  # steps between measurements, and held-out prompts
PATIENCE = 2  # measurements without a better score of the held-out reward model
AVERAGED = 3  # runs whose weights are averaged
WORDS, PRICE = 25, -0.1  # of an answer before each further one has a price

Scorer = Callable[[list[str]], Any]


def judge(seed: int) -> RewardModel:
    """A reward model of another seed on the same rankings and the same SFT model."""
    folder = RUN.dir("reward") if seed == 0 else RUN.dir(f"reward_{seed}")
    if not (folder / "metrics.json").exists():
        reward_model.train(RUN.config("reward", seed=seed, output_dir=folder))
    return RewardModel.from_pretrained(folder)


def methods(judges: list[RewardModel]) -> dict[str, tuple[Rewards, dict[str, Any]]]:
    """What each method is rewarded with, and its settings beside those that hack."""
    first = judges[0]
    ensembles = {
        "ensemble: mean": Ensemble(judges[:3]),
        "ensemble: lower quantile": Ensemble(judges[:3], "quantile"),
        "ensemble: mean minus deviation": Ensemble(judges[:3], "deviation"),
    }
    length = [Reward("length", words_over(WORDS), PRICE)]
    return {
        "none": (Rewards(first), {}),
        "KL price": (Rewards(first), {"kl_coef": 0.15}),
        **{name: (Rewards(ensemble), {}) for name, ensemble in ensembles.items()},
        "reward clipping": (Rewards(first), {"score_clip": 1.0}),
        "length control": (Rewards(first, length), {}),
    }


def measure(policy: PreTrainedModel, held_out: Scorer, seed: int) -> dict[str, float]:
    """Gold, KL and the scores of both reward models on held-out prompts."""
    prompts = schemas.read_prompts(RUN.data("prompts", "validation"))[:PROMPTS]
    settings = {"reference": load_policy(RUN.dir("sft")), "reward_model": held_out, "seed": seed}
    found, _ = evaluate_policy(policy, load_tokenizer(RUN.dir("sft")), prompts, **settings)
    return {name: found[name] for name in ("gold", "kl", "reward", "length")}


def train(
    rewards: Rewards, held_out: Scorer, seed: int, **changes: Any
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """The policy after all steps, and a row of its curve every few of them."""
    config = RUN.config("ppo", **HACKING | changes | {"seed": seed})
    policy, tokenizer = load_policy(RUN.dir("sft")), load_tokenizer(RUN.dir("sft"))
    trainer, curve, seconds = PPOTrainer(policy, tokenizer, config), [], 0.0
    records = schemas.read_prompts(config.data)
    for step, batch in enumerate(record_batches(records, config), 1):
        started = time.perf_counter()
        rollout = trainer.rollout([formatted(record, config) for record in batch], batch)
        scores, _ = rewards(rollout)
        trainer.step(rollout, scores)
        seconds += time.perf_counter() - started
        if step % EVERY == 0:
            curve.append({"step": step, "seconds": seconds, **measure(policy, held_out, seed)})
    return policy, curve


def stopped(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """The curve up to where the held-out reward model would have stopped, its best point last."""
    stop = EarlyStop(PATIENCE)
    for row in curve:
        if stop(row["reward"]):
            break
    return curve[: stop.best_at + 1]


def averaged(rewards: Rewards, held_out: Scorer, seed: int) -> list[dict[str, float]]:
    """A curve of one point: the average of several runs that differ in their seed alone."""
    runs = [train(rewards, held_out, seed + 100 * i) for i in range(AVERAGED)]
    seconds = sum(curve[-1]["seconds"] for _, curve in runs)
    policy = average_weights([policy for policy, _ in runs])
    steps = float(runs[0][1][-1]["step"])
    return [{"step": steps, "seconds": seconds, **measure(policy, held_out, seed)}]


def summary(curves: list[list[dict[str, float]]]) -> dict[str, str]:
    """A line of the table: means over the seeds with 95% intervals (Student's t)."""
    numbers = {
        "gold at its best": [max(row["gold"] for row in curve) for curve in curves],
        "gold at the end": [curve[-1]["gold"] for curve in curves],
        "KL at the end": [curve[-1]["kl"] for curve in curves],
        "tokens an answer": [curve[-1]["length"] for curve in curves],
        "seconds": [curve[-1]["seconds"] for curve in curves],
    }
    return {name: interval(values) for name, values in numbers.items()}


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{fmean(values):.2f} ± {half:.2f}" if math.isfinite(half) else f"{fmean(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="only these (default: all)")
    options = parser.parse_args()
    train_missing(RUN, "sft", "reward")
    judges = [judge(seed) for seed in range(4)]
    known, held_out = methods(judges), judges[3]
    extra = ("early stop", "averaged weights")
    wanted = options.methods or [*known, *extra]
    curves: dict[str, list] = {}
    for seed in options.seeds:
        for name, (rewards, changes) in known.items():
            if name in wanted or (name == "none" and "early stop" in wanted):
                curve = train(rewards, held_out, seed, **changes)[1]
                curves.setdefault(name, []).append(curve)
                print(seed, name, curve[-1], flush=True)
        if "early stop" in wanted:
            curves.setdefault("early stop", []).append(stopped(curves["none"][-1]))
        if "averaged weights" in wanted:
            rewards = known["none"][0]
            curves.setdefault("averaged weights", []).append(averaged(rewards, held_out, seed))
    rows = [
        {"method": name, "seed": seed, **row}
        for name, runs in curves.items()
        for seed, curve in zip(options.seeds, runs, strict=True)
        for row in curve
    ]
    pd.DataFrame(rows).to_csv(RUN.dir("overoptimisation").with_suffix(".csv"), index=False)
    lines = [{"": name, **summary(runs)} for name, runs in curves.items() if name in wanted]
    table = pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    print(table)
    Path(__file__).with_suffix(".md").write_text(f"{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
