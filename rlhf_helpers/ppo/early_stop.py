"""When to stop optimising: once a measure that is not optimised has stopped rising.

A policy goes on gaining reward after its true quality has begun to fall (Gao et al. 2022). A reward
model that was trained on other labels, and which the policy never sees, tells of that earlier.
"""

import math


class EarlyStop:
    """Watches a held-out measure, a value at a time, and remembers the best one.

    stop = EarlyStop(patience=3)
    for step, prompts in enumerate(batches):
        ...
        if stop(fmean(held_out_reward_model(texts))):
            break
    """

    def __init__(self, patience: int):
        """Stop after `patience` values in a row that are none better than the best; at least 1."""
        if patience < 1:
            raise ValueError(f"patience is {patience}: it must be a whole number of at least 1")
        self.patience, self.seen = patience, 0
        self.best, self.best_at = -math.inf, -1  # the highest value, and which it was, from 0

    def __call__(self, value: float) -> bool:
        """Take the next value, return whether to stop; ValueError for one that is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"the held-out measure is {value}: it must be a finite number")
        if value > self.best:
            self.best, self.best_at = value, self.seen
        self.seen += 1
        return self.seen - 1 - self.best_at >= self.patience
