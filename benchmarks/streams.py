"""Memory and speed of streamed data sets of 10,000 to 1,000,000 rows, from Deep Lake and Parquet.

    python benchmarks/streams.py [--rows 10000 100000 1000000]

Rows have the columns of the three data sets of the `full` scale and about 600 characters of made-up
text. Each set is read whole, shuffled with a buffer of 10,000 rows and mapped to our records, in a
process of its own. Prints the table that `benchmarks/streams.md` keeps. Linux only: the kernel
tells the peak. About ten minutes on two cores.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import deeplake
import pandas as pd
import torch

from rlhf_helpers.sources.streams import stream

# data set -> kind of record, and the characters of each column
SETS = {
    "OpenOrca": ("demonstrations", {"system_prompt": 60, "question": 240, "response": 300}),
    "Alpaca-OrcaChat": ("prompts", {"instruction": 60, "input": 240, "output": 300}),
    "hh-rlhf": ("preferences", {"chosen": 300, "rejected": 300}),
}
BLOCK = 10_000  # rows written at once
NOTE = (
    "MB: peak memory above what the imports took. Speed: of the largest set, shuffling (buffer of "
    "10,000 rows) and mapping included. Deep Lake's core keeps the chunks that it read last, up to "
    "a bound of its own, for which it has no setting (its maintainers, "
    "github.com/activeloopai/deeplake/issues/2987): its memory rises until that is full. Parquet "
    "files had 10,000 rows each; of a file with larger row groups, one group is held at a time."
)


def blocks(name: str, rows: int) -> Iterator[dict[str, list[str]]]:
    """Columns of a data set, block by block; the texts are cut from random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5_000)]
    text = " ".join(draw.choices(words, k=200_000))

    def cut(length: int) -> str:
        start = draw.randrange(len(text) - 2 * length)
        return text[start : start + draw.randint(length // 2, 3 * length // 2)]

    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        if name == "hh-rlhf":
            shared = [f"\n\nHuman: {cut(100)}\n\nAssistant:" for _ in range(count)]
            yield {c: [f"{s} {cut(200)}" for s in shared] for c in ("chosen", "rejected")}
        else:
            sizes = SETS[name][1]
            yield {column: [cut(n) for _ in range(count)] for column, n in sizes.items()}


def write(name: str, form: str, rows: int, folder: Path) -> Path:
    """One data set as a Deep Lake folder, or as Parquet files of 10,000 rows."""
    path = folder / f"{name}-{form}-{rows}"
    if form == "Parquet":
        path.mkdir()
        for number, block in enumerate(blocks(name, rows)):
            pd.DataFrame(block).to_parquet(path / f"{number:05d}.parquet")
        return path
    lake = deeplake.create(str(path))
    for column in SETS[name][1]:
        lake.add_column(column, deeplake.types.Text())
    for block in blocks(name, rows):
        lake.append(block)
    lake.commit()
    return path


def peak() -> float:
    """The most memory that this process has had, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(data: str, kind: str) -> str:
    """Rows, peak memory above what the imports took (MB), and rows a second."""
    torch.get_num_threads()  # `datasets` would import torch on the way, which is not our topic
    before, started = peak(), time.perf_counter()
    rows = sum(1 for _ in stream(data, kind))
    return f"{rows} {peak() - before:.1f} {rows / (time.perf_counter() - started):.0f}"


def measure_apart(data: Path, kind: str) -> list[float]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(data), kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return [float(number) for number in done.stdout.split()]


def machine() -> str:
    """Processor, cores and versions."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), "")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("datasets", "deeplake", "pyarrow"))
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--measure", nargs=2, metavar=("DATA", "KIND"), help="only this source")
    options = parser.parse_args()
    if options.measure:
        print(measure(*options.measure))
        return
    lines = []
    for name, (kind, _) in SETS.items():
        for form in ("Deep Lake", "Parquet"):
            line = {"columns of": name, "records": kind, "format": form}
            for rows in options.rows:
                with tempfile.TemporaryDirectory() as folder:
                    read, memory, speed = measure_apart(write(name, form, rows, Path(folder)), kind)
                assert read == rows
                line |= {f"MB, {rows:,} rows": f"{memory:.0f}", "rows a second": f"{speed:,.0f}"}
            line["rows a second"] = line.pop("rows a second")  # of the largest set, last
            lines.append(line)
            print(line, flush=True)
    table = pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    text = f"{machine()}\n\n{table}\n\n{NOTE}\n"
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
