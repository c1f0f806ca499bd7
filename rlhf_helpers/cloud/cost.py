"""The one cost model: example prices with source and date, and hours times price.

`plan` estimates the hours of a scale's stages; it and the lessons multiply them by these prices.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd


class Price(NamedTuple):
    """US dollars an hour for a whole machine, the page that says so, and when it was read."""

    dollars: float
    source: str
    read: str


_LAMBDA = "lambda.ai/instances, on demand"
_GOOGLE = "cloud.google.com/compute/gpus-pricing, us-central1, on demand"
# Examples, not offers: prices differ by provider, region and month. Look up yours and pass it.
PRICES = {
    "laptop": Price(0.0, "yours", ""),
    "1 x T4": Price(0.53, "aws.amazon.com/ec2/pricing, g4dn.xlarge, us-east-1", "November 2026"),
    "1 x L4": Price(0.85, f"{_GOOGLE}: g2-standard-8", "October 2026"),
    "1 x A10": Price(1.29, _LAMBDA, "September 2026"),
    "1 x A100 40GB": Price(1.99, _LAMBDA, "September 2026"),
    "1 x H100 80GB": Price(4.29, _LAMBDA, "September 2026"),
    "8 x A100 40GB": Price(15.92, _LAMBDA, "September 2026"),
    "8 x A100 80GB": Price(22.32, _LAMBDA, "September 2026"),
    "8 x H100 80GB": Price(31.92, _LAMBDA, "September 2026"),
    "a2-ultragpu-8g": Price(40.55, f"{_GOOGLE}: 8 x A100 80GB", "October 2026"),
    "8 x A100 40GB in 2023": Price(8.80, "Lambda, in the course that `full` is from", "2023"),
}
EXAMPLE_PRICES = {machine: price.dollars for machine, price in PRICES.items()}
ENDPOINT = "1 x L4"  # an example: Google's component does not say what its endpoint runs on
HOURS_A_MONTH = 730


class Job(NamedTuple):
    """A job that runs for `hours` on a machine; `how` says where that number is from."""

    name: str
    machine: str  # a key of the prices
    hours: float
    how: str  # "measured" or "estimated"


# The course that L1 to L5 follow says "about a full day"; the machine is the component's own.
GOOGLE_RUN = Job("Google's pipeline, small data", "a2-ultragpu-8g", 24.0, "estimated")


def price_table() -> pd.DataFrame:
    """Return the example prices with their sources, one row for each machine."""
    rows = [(machine, *price) for machine, price in PRICES.items()]
    return pd.DataFrame(rows, columns=["machine", "dollars an hour", "source", "read"])


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
