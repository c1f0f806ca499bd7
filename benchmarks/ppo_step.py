"""One PPO step, ours against both generations of TRL's: seconds, memory, growth, learning.

    python benchmarks/ppo_step.py [--parts "S, one core" …]

TRL 1.12.0 (`trl.experimental.ppo`, the last one with PPO) and 0.11.4 (the last one that went step
by step) each run in a virtual environment of their own, made under `runs/benchmarks/`. All sides
get the same weights, the same prompts of 64 tokens, the same reward model, mini-batches of 16, four
epochs, fp32. They take turns, A B C A B C, so that the ratios hold on a busy machine too. Takes
about 40 minutes on two cores; prints the tables that `benchmarks/ppo_step.md` keeps.
"""

import argparse
import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from workers.ppo_sides import BEST, LEARNERS, PINS, PLAIN, ROWS, SIZES, Side, python

from rlhf_helpers.models.devices import attention


def measure(rows: list[str], steps: int = 10, warmup: int = 2, **options: Any) -> pd.DataFrame:
    """Median seconds of a step, the memory that the first one took, and what the last one says."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(Path(folder), row, **options) for row in rows]
        first = [side.step("memory") for side in sides]
        rounds = [[side.step() for side in sides] for _ in range(warmup + steps)][warmup:]
        for side in sides:
            side.close()
    table = pd.DataFrame(rounds[-1], index=rows)
    table["peak"] = [report["peak"] for report in first]
    table["seconds"] = np.median(
        [[report["seconds"] for report in turn] for turn in rounds], axis=0
    )
    print(options, "\n", table.round(3), flush=True)
    return table


def ratios(table: pd.DataFrame, title: str) -> str:
    """Seconds and memory of every row, and how many times those of ours the peers' are."""
    lines = []
    for name, row in table.iterrows():
        line = {title: name, "seconds": f"{row['seconds']:.2f}", "peak, MB": f"{row['peak']:.0f}"}
        for peer in ("TRL 1.12.0", "TRL 0.11.4"):
            line[f"faster than {peer}"] = f"{table.loc[peer, 'seconds'] / row['seconds']:.2f}"
            line[f"memory of {peer}'s"] = f"{row['peak'] / table.loc[peer, 'peak']:.2f}"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def two_cores() -> str:
    """The same matmul setting for all."""
    sizes = {
        size: measure(list(PLAIN), steps=3, warmup=1, size=size, cores=[0, 1])
        for size in ("S", "M")
    }
    return "\n\n".join(ratios(table, size) for size, table in sizes.items())


def floors() -> str:
    """How much of the time of a step on one core its multiplications alone would take."""
    return pd.DataFrame([floor(size) for size in ("S", "M")]).to_markdown(index=False)


def floor(size: str) -> dict[str, Any]:
    """Operations counted by torch, over the rate of a matrix product of the feed-forward layer."""
    found = measure(["ours"], steps=3, size=size, floor=True).iloc[0]
    operations, rate = found["operations"] / 1e9, found["rate"] / 1e9
    return {
        "size": size,
        "GFLOP a step": round(operations, 1),
        "matmul, GFLOP/s": round(rate),
        "floor, seconds": round(operations / rate, 2),
        "fraction reached": round(operations / rate / found["seconds"], 2),
    }


def lengths() -> str:
    """Responses that end by themselves, after a third of the most tokens on average.

    The learning rate is next to nothing, so that they stay as long as that.
    """
    table = measure(list(ROWS), variable=True, lr=1e-7)
    mean = ", ".join(f"{x:.0f}" for x in table["length"].dropna())
    return ratios(table, "S, variable lengths") + f"\n\nMean lengths of a last step: {mean}."


def growth() -> str:
    """Seconds and memory over batch, response length and size, with fitted exponents."""
    sweeps = {
        "batch": [{"batch": n} for n in (16, 64, 256)],
        "length": [{"length": n} for n in (16, 64, 128)],
        "size": [{"size": n, "batch": 16} for n in SIZES],
    }
    lines = []
    for name, points in sweeps.items():
        tables = [measure(list(PLAIN), steps=2, warmup=1, **p) for p in points]
        for key, unit in (("seconds", "seconds"), ("peak", "peak, MB")):
            x = [_cost(name, point) for point in points]
            for side in PLAIN:
                y = [table.loc[side, key] for table in tables]
                exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
                lines.append(
                    {
                        "over": f"{name} {' '.join(str(point[name]) for point in points)}",
                        "": side,
                        "measured": f"{unit}: " + " ".join(f"{value:.3g}" for value in y),
                        "exponent": f"{exponent:.2f}",
                    }
                )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _cost(name: str, point: dict[str, Any]) -> float:
    """What an exponent refers to: responses, tokens of a response, or parameters of the layers."""
    if name != "size":
        return point[name]
    hidden, layers, _, ffn = SIZES[point["size"]]
    return layers * (4 * hidden**2 + 2 * hidden * ffn) + 2000 * hidden


def climb(side: Side, steps: int) -> list[dict[str, float]]:
    """Step until the score reaches 4, or so many times."""
    history = [side.step()]
    while history[-1]["score"] < 4 and len(history) < steps:
        history.append(side.step())
    return history


def learning(seeds: int = 5, steps: int = 40) -> str:
    """Steps until the rule's score reaches 4, and the KL there; lr 1e-3, each on one core."""
    found: dict[str, list] = {name: [] for name in LEARNERS}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
            running = [
                Side(Path(folder), name, lr=1e-3, seed=seed, rule=True, cores=[turn % 2])
                for turn, name in enumerate(LEARNERS)
            ]
            climbs = pool.map(climb, running, [steps] * len(running))
            for side, history in zip(running, climbs, strict=True):
                found[side.name].append((len(history), history[-1]["score"], history[-1]["kl"]))
                side.close()
        print(seed, found, flush=True)
    rows = []
    for name, ends in found.items():
        counts, scores, kls = zip(*ends, strict=True)
        rows.append(
            {
                "": name,
                "steps to a score of 4, by seed": " ".join(map(str, counts)),
                "median": f"{np.median(counts):g}",
                "lowest score then": f"{min(scores):.2f}",
                "KL then, nats, by seed": " ".join(f"{kl:.1f}" for kl in kls),
                "median KL": f"{np.median(kls):.1f}",
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def machine() -> str:
    """The processor, its cores, and the versions."""
    names = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in names if line.startswith("model name")), "")
    return (
        f"{name or platform.processor()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {', '.join(PINS)}. Our best "
        f"setting there: float32 matmul precision {BEST}, {attention()} attention.\n\n"
        "Seconds: median of the steps. Peak: the most bytes of tensors alive at once in a first "
        "step, above the loaded models (torch's profiler)."
    )


PARTS = {
    "S, one core": lambda: ratios(measure(list(ROWS), size="S"), "S"),
    "M, one core": lambda: ratios(measure(list(ROWS), size="M"), "M"),
    "Two cores": two_cores,
    "Floor": floors,
    "Variable lengths": lengths,
    "Growth": growth,
    "Learning": learning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args().parts
    for side in ("newer", "older"):
        python(side)
    report = Path(__file__).with_suffix(".md")
    known = report.read_text(encoding="utf-8").split("\n## ")[1:] if report.exists() else []
    sections = dict(section.split("\n\n", 1) for section in known)
    for part in chosen:  # the others stay as they are
        sections[part] = PARTS[part]().strip()
        print(sections[part], flush=True)
        parts = [f"## {name}\n\n{sections[name].strip()}\n" for name in PARTS if name in sections]
        report.write_text("\n".join([f"{machine()}\n", *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
