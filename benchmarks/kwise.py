"""K = 4 rankings at `tiny`: all pairs of a prompt at once, against the same pairs one by one.

    python benchmarks/kwise.py [--seeds 0 1 2]

Both train on the same rankings for one epoch, with as many texts a batch (32), the same settings,
from the same SFT model; with the first seed also K-wise on texts read whole, as models without a
key-value cache do. Each run has a process of its own, for its peak memory, and they take turns, so
that the ratio of their times holds on a busy machine too. Prints the table that
`benchmarks/kwise.md` keeps; accuracy is on the 2,000 test pairs. About ten minutes a seed on two
cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from rlhf_helpers import kwise, reward_model, schemas, sft
from rlhf_helpers.evaluation import evaluate_reward_model
from rlhf_helpers.scales import Scale
from rlhf_helpers.sources import rankings_to_preferences

TEXTS = 32  # a batch
WAYS = {
    "pairs": "the pairs one by one",
    "whole": "K-wise, texts read whole",
    "kwise": "K-wise, prompt shared",
}


def measure(way: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one way; seconds of the epoch, peak memory above the start's, accuracy."""
    scale = Scale("tiny")
    data = scale.data("rankings", "train")
    if way == "pairs":
        pairs = rankings_to_preferences(schemas.read_rankings(data))
        data = folder / "pairs.jsonl"
        schemas.write_jsonl(data, pairs)
    if way == "whole":
        kwise._can_share = lambda *_: False
    config = scale.config(
        "reward", data=data, seed=seed, output_dir=folder,
        batch_size=TEXTS // (2 if way == "pairs" else 4),
        calibration_prompts=16,  # so that the peak of memory is the training's
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = reward_model.train(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    scorer = reward_model.RewardModel.from_pretrained(folder)
    test = schemas.read_preferences(scale.data("preferences", "test"))
    accuracy = evaluate_reward_model(scorer, test)[0]
    return {
        "seconds": result.metrics["seconds"],
        "memory": peak / 1024,
        "gold": accuracy["accuracy_gold"],
        "noisy": accuracy["accuracy_noisy"],
    }


def measure_apart(way: str, seed: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--seeds", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: pd.DataFrame) -> str:
    """One line a way; times as ratios of the runs with the same seed."""
    base = rows[rows["way"] == "pairs"].set_index("seed")
    lines = []
    for way, name in WAYS.items():
        runs = rows[rows["way"] == way].set_index("seed")
        faster = (base["seconds"] / runs["seconds"]).dropna()
        lines.append(
            {
                "": name,
                "seconds an epoch": f"{runs['seconds'].mean():.0f}",
                "times faster": f"{faster.mean():.2f} ({faster.min():.2f} to {faster.max():.2f})",
                "peak memory, MB": f"{runs['memory'].mean():.0f}",
                "accuracy (gold)": " ".join(f"{x:.3f}" for x in runs["gold"]),
                "mean": f"{runs['gold'].mean():.3f}",
                "accuracy (labels)": f"{runs['noisy'].mean():.3f}",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--way", choices=WAYS, help="only this one, the first seed, as JSON")
    options = parser.parse_args()
    if options.way:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.way, options.seeds[0], Path(folder))))
        return
    scale = Scale("tiny")
    if not (scale.dir("sft") / "metrics.json").exists():
        sft.train(scale.config("sft"))
    rows = []
    for seed in options.seeds:
        for way in WAYS:
            if way != "whole" or seed == options.seeds[0]:
                rows.append({"way": way, "seed": seed, **measure_apart(way, seed)})
                print(rows[-1], flush=True)
    text = table(pd.DataFrame(rows))
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
