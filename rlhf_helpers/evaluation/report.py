"""One policy at several temperatures beside its reference: numbers, and what both of them write."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.evaluation.comparison import win_rate
from rlhf_helpers.evaluation.metrics import evaluate_policy
from rlhf_helpers.evaluation.texts import text_metrics
from rlhf_helpers.schemas import Prompt

REPORTED = (1.0, 0.4, 0.0)  # temperatures: as trained, as people sample, greedy
STYLE = "td, th {text-align: left; vertical-align: top; padding: 4px; white-space: pre-wrap}"


def temperature_name(temperature: float) -> str:
    """The name of a temperature in a report: `sampled` for 1, `greedy` for 0, `sampled_0.4`."""
    return {1.0: "sampled", 0.0: "greedy"}.get(temperature, f"sampled_{temperature:g}")


def report_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    temperatures: Sequence[float] = REPORTED,
    *,
    reference: PreTrainedModel | None = None,
    **settings: Any,
) -> tuple[dict[str, dict[str, float]], pd.DataFrame]:
    """Measure a policy at each temperature; return metrics by `temperature_name`, and samples.

    The metrics are those of `evaluate_policy`, whose keyword arguments `settings` are, and the
    lengths and diversity of `text_metrics`. With a reference there is also `win_rate` with its 95%
    interval: how often the policy's answer has a higher reward than the reference's answer to the
    same prompt at the same temperature; `win_rate_gold` where gold is known; and the reference's
    own `reference_reward`, `reference_gold` and `reference_length`, whose rise at low temperatures
    needs no training, and what each reward function gives it. The samples have a row for each
    prompt and temperature: `prompt`, `temperature`, `reference`, `policy`.
    """
    report, samples = {}, []
    for temperature in temperatures:
        settings["temperature"] = temperature
        found, table = evaluate_policy(policy, tokenizer, prompts, reference=reference, **settings)
        found |= text_metrics(table["response"].tolist())
        shown = table[["prompt"]].assign(temperature=temperature)
        if reference is not None:
            own, before = evaluate_policy(reference, tokenizer, prompts, **settings)
            found |= _win_rates(table, before)
            shared = (n for n in own if n in ("reward", "gold", "length") or "reward/" in n)
            found |= {f"reference_{name}": own[name] for name in shared}
            shown["reference"] = before["response"]
        report[temperature_name(temperature)] = found
        samples.append(shown.assign(policy=table["response"]))
    by_prompt = pd.concat(samples).sort_index(kind="stable")
    return report, by_prompt.reset_index(drop=True)


def _win_rates(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {}
    for judge, name in (("reward", "win_rate"), ("gold", "win_rate_gold")):
        if judge in after:
            won = win_rate(after[judge].tolist(), before[judge].tolist())
            found |= {name: won.rate, f"{name}_low": won.low, f"{name}_high": won.high}
    return found


def write_html(path: Path, title: str, table: pd.DataFrame) -> None:
    """Write a table of texts as an HTML page that shows them as they are."""
    body = table.to_html(index=False, border=1, float_format="{:g}".format)
    page = f"<!doctype html>\n<meta charset='utf-8'>\n<style>{STYLE}</style>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{page}<h1>{html.escape(title)}</h1>\n{body}\n", encoding="utf-8")
