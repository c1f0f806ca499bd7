"""The cost of a run: hours, measured or estimated, times a price that you look up."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

# US dollars an hour for the whole machine. Round examples, not anybody's offer: prices differ by
# provider, region and month, so look up yours and pass it.
EXAMPLE_PRICES = {
    "laptop": 0.0,
    "1 x T4": 0.50,
    "1 x A100 40GB": 2.00,
    "1 x H100 80GB": 3.50,
    "8 x A100 40GB": 16.00,
    "8 x A100 80GB": 40.00,
}


class Job(NamedTuple):
    """A job that runs for `hours` on a machine; `how` says where that number is from."""

    name: str
    machine: str  # a key of the prices
    hours: float
    how: str  # "measured" or "estimated"


def cost_table(jobs: Iterable[Job], prices: Mapping[str, float] = EXAMPLE_PRICES) -> pd.DataFrame:
    """Return one row for each job: machine, hours and their source, price an hour, cost (dollars).

    Raises ValueError for a machine without a price, and for numbers below 0.
    """
    rows = []
    for job in jobs:
        if job.machine not in prices:
            known = ", ".join(prices)
            raise ValueError(f"{job.name}: no price for {job.machine!r} among {known}. Add it.")
        if job.how not in ("measured", "estimated"):
            raise ValueError(f"{job.name}: how is {job.how!r}. Say 'measured' or 'estimated'.")
        price = prices[job.machine]
        if not (0 <= job.hours < math.inf and 0 <= price < math.inf):
            raise ValueError(f"{job.name}: {job.hours} hours at {price} must be 0 or more.")
        rows.append((job.name, job.machine, job.hours, job.how, price, job.hours * price))
    price_column = "example price/hour" if prices is EXAMPLE_PRICES else "price/hour"
    return pd.DataFrame(rows, columns=["job", "machine", "hours", "how", price_column, "cost"])
