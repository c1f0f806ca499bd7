"""How far can a reward model be trusted when answers are chosen by it? Best-of-n shows it.

Taking the best-scored of n samples is the simplest way to optimise against a reward model. It needs
no training, and its KL from the sampling policy is known exactly. As n grows, the score of the
chosen answers (the proxy) and their gold drift apart (Gao et al. 2022, "Scaling laws for reward
model overoptimization").
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rlhf_helpers.extras import needs_extra


def best_of_n_kl(n: ArrayLike) -> np.ndarray:
    """KL of best-of-n from the policy that samples, nats: log n - (n - 1) / n.

    Exact where no two samples score alike, an upper bound otherwise (Beirami et al. 2024).
    """
    n = np.asarray(n, dtype=float)
    return np.log(n) - (n - 1) / n


def best_of_n(proxy: ArrayLike, gold: ArrayLike) -> pd.DataFrame:
    """Expected proxy and gold of the sample with the best proxy among n, for n = 1 to N.

    Both are (prompts, N): the scores of N samples of each prompt. The estimate is the exact average
    over all subsets of n samples, without drawing any (Nakano et al. 2021, appendix I), and is
    unbiased; of samples with equal proxies each is chosen equally often. A row for each n: `n`,
    `kl`, `proxy`, `gold`, and the standard errors of both over the prompts (`proxy_se`, `gold_se`),
    NaN for a single prompt. Raises ValueError unless both are finite and of one shape.
    """
    proxy, gold = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if proxy.ndim != 2 or proxy.shape != gold.shape or not proxy.size:
        raise ValueError(
            f"proxy {proxy.shape} and gold {gold.shape}: both must be (prompts, samples)"
        )
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("a score is not finite: drop that prompt from both")
    order = np.argsort(proxy, axis=1)
    proxy = np.take_along_axis(proxy, order, axis=1)
    gold = _mean_over_ties(proxy, np.take_along_axis(gold, order, axis=1))
    weights = _rank_weights(proxy.shape[1])
    table = pd.DataFrame({"n": np.arange(1, proxy.shape[1] + 1)})
    table["kl"] = best_of_n_kl(table["n"])
    for name, scores in (("proxy", proxy), ("gold", gold)):
        expected = pd.DataFrame(scores @ weights.T)  # (prompts, N)
        table[name] = expected.mean()
        table[f"{name}_se"] = expected.sem()
    return table


def _rank_weights(samples: int) -> np.ndarray:
    """Row n - 1: how likely the sample of rank i (1 is the worst) is the best of n drawn of N.

    C(i - 1, n - 1) / C(N, n), by logarithms, since the numbers themselves overflow.
    """
    n, i = np.arange(1, samples + 1)[:, None], np.arange(1, samples + 1)[None, :]
    possible = i >= n
    logs = _log_choose(np.where(possible, i - 1, n - 1), n - 1) - _log_choose(samples, n)
    return np.where(possible, np.exp(logs), 0.0)


def _log_choose(total: ArrayLike, chosen: np.ndarray) -> np.ndarray:
    with needs_extra("course"):
        from scipy.special import gammaln

    total = np.asarray(total)
    return gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)


def _mean_over_ties(proxy: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Gold (prompts, N) with its mean in place of each where the sorted proxies are equal."""
    shared = gold.copy()
    for row, values in enumerate(proxy):
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        shared[row] = (np.bincount(group, gold[row]) / counts)[group]
    return shared
