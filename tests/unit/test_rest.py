"""Reinforced Self-Training: what Grow samples, what the filters keep, what Improve learns."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rlhf_helpers import rest, sft
from rlhf_helpers.models import load_policy
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_demonstrations

PROMPTS = [{"input_text": f"Post {i}. [summary]: "} for i in range(3)]


def samples(scores: list[list[float]], **columns) -> pd.DataFrame:
    """A Grow step's table with these scores, a list a prompt."""
    flat = [(prompt, score) for prompt, row in enumerate(scores) for score in row]
    table = pd.DataFrame(flat, columns=["prompt", "score"])
    mean = table.groupby("prompt")["score"].transform("mean")
    table = table.assign(
        input_text=[f"Post {i}. [summary]: " for i in table["prompt"]],
        output_text=[f"Answer {i}." for i in range(len(table))],
        ended=True,
        advantage=table["score"] - mean,
    )
    return table.assign(**columns)


def test_grow_scores_what_it_has_sampled(make_model, tokenizer):
    seen: list[str] = []

    def scorer(texts):
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    options = {"samples_per_prompt": 4, "max_new_tokens": 3, "instruction": "Be brief."}
    table = rest.grow(make_model("opt"), tokenizer, scorer, PROMPTS, **options)
    assert table["prompt"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["input_text"].tolist() == [p["input_text"] for p in PROMPTS for _ in range(4)]
    for text, row in zip(seen, table.itertuples(), strict=True):
        prompt = f"Be brief. {row.input_text.strip()}"
        assert text.startswith(prompt)
        assert text.removeprefix(prompt).strip() == row.output_text
        assert row.score == len(text)
    assert table["ended"].nunique() == 2, "some are cut off, else nothing is tested"
    assert table.groupby("prompt")["advantage"].mean().abs().max() < 1e-6
    again = rest.grow(make_model("opt"), tokenizer, scorer, PROMPTS, **options)
    assert table.equals(again)


def test_the_filter_keeps_what_is_above_the_threshold():
    table = samples([[0.0, 1.0], [2.0, 3.0]])
    assert rest.above(table, 1.0)["score"].tolist() == [2.0, 3.0]
    assert rest.above(table, 0.4, by="advantage")["score"].tolist() == [1.0, 3.0]


def test_a_rising_quantile_keeps_the_share_that_it_promises():
    table = samples([[float(i)] for i in range(100)])
    kept = [len(rest.above(table, table["score"].quantile(q))) for q in (0.5, 0.75, 0.9)]
    assert kept == [50, 25, 10]


def test_cut_and_empty_answers_are_never_kept():
    table = samples([[1.0, 2.0, 3.0]], ended=[True, True, False])
    table.loc[1, "output_text"] = ""
    assert rest.above(table, 0.0)["score"].tolist() == [1.0]
    assert rest.best_of(table, 3)["score"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (samples([[0.0, 1.5]]), ["threshold 2 keeps 0% of 2 answers", "1.5", "Lower it"]),
        (samples([[3.0, 4.0]], ended=False), ["0% of 2 answers", "none came to its end"]),
    ],
)
def test_a_threshold_that_keeps_nothing_says_what_to_do(table, words):
    with pytest.raises(ValueError) as error:
        rest.above(table, 2.0)
    assert all(word in str(error.value) for word in words)


def test_best_of_n_takes_one_answer_a_prompt_among_its_first_n():
    table = samples([[0.0, 2.0, 9.0], [1.0, -1.0, 0.0]])
    assert rest.best_of(table, 2)["score"].tolist() == [2.0, 1.0]
    assert rest.best_of(table, 3)["score"].tolist() == [9.0, 1.0]
    assert rest.best_of(table, 1)["score"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("n", [0, 4])
def test_best_of_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match="choose 1 to 3"):
        rest.best_of(samples([[0.0, 2.0, 9.0], [1.0, -1.0, 0.0]]), n)


def test_improve_is_sft_on_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    run = Scale("smoke")
    kept = rest.above(samples([[0.0, 1.0]] * 4), 0.5)
    folder = run.dir("rest")
    config = run.config("sft", data=folder / "kept.jsonl", output_dir=folder, epochs=3)
    result = rest.improve(kept, config)
    records = read_demonstrations(config.data)
    assert [record["output_text"] for record in records] == kept["output_text"].tolist()
    assert [record["score"] for record in records] == [1.0] * 4
    assert result.metrics["demonstrations"] == 4
    improved = load_file(folder / "model.safetensors")
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "plain"))
    files = {"data": config.data, "output_dir": run.dir("sft"), "epochs": 3}
    plain = load_file(sft.train(run.config("sft", **files)).output_dir / "model.safetensors")
    assert all(torch.equal(improved[name], plain[name]) for name in plain)
    base = load_policy(run.base_model).state_dict()
    assert any(not torch.equal(improved[name], base[name]) for name in improved)
    report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert report["config"]["data"] == str(config.data)
