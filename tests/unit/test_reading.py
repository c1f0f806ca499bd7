"""Whether a reward model reads: each test on scorers that are known to read, or not to."""

import numpy as np
import pytest
import torch

from rlhf_helpers.evaluation import diagnose_reward_model, metrics, reading, trust
from rlhf_helpers.generation import encode_prompts
from rlhf_helpers.little_world.annotators import gold_columns, gold_scores, measure
from rlhf_helpers.little_world.grammar import find_post, read_post
from rlhf_helpers.little_world.writers import contrast_pairs
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import candidate_texts, format_prompt, read_preferences

PAIRS = read_preferences(Scale().data("preferences", "test"))[:200]
CONTRASTS = contrast_pairs([record["input_text"] for record in PAIRS[:120:6]])


def by_form(texts: list[str]) -> list[float]:
    """The shorter the answer, the better."""
    return [-float(len(text.partition("[summary]:")[2].split())) for text in texts]


# The shuffled-prompt test


def test_every_pair_gets_another_prompt_and_keeps_its_answers():
    shuffled = reading.under_other_prompts(PAIRS)
    for own, other in zip(PAIRS, shuffled, strict=True):
        assert own["input_text"] != other["input_text"]
        assert {**other, "input_text": own["input_text"]} == own
    moved = {(a["input_text"], b["input_text"]) for a, b in zip(PAIRS, shuffled, strict=True)}
    assert len(moved) == len({own for own, _ in moved}) == len({other for _, other in moved})
    assert reading.under_other_prompts(PAIRS) == shuffled
    assert reading.under_other_prompts(PAIRS, seed=1) != shuffled
    with pytest.raises(ValueError, match="at least two different prompts"):
        reading.under_other_prompts(PAIRS[:1])


def test_who_reads_falls_under_another_prompt_and_who_judges_form_does_not():
    reads, table = reading.prompt_sensitivity(gold_scores, PAIRS, gold=gold_columns)
    assert reads["accuracy_gold"] == 1
    assert reads["accuracy_gold_other_post"] < 0.85
    assert reads["order_kept"] < 0.85 and reads["score_correlation"] < 0.8
    assert reads["accuracy_noisy"] > reads["accuracy_noisy_other_post"]
    assert len(table) == len(PAIRS) and {"other_score_0", "other_score_1"} <= set(table)
    assert diagnose_reward_model(reads) == []

    form, table = reading.prompt_sensitivity(by_form, PAIRS, gold=gold_columns)
    assert form["accuracy_gold"] == form["accuracy_gold_other_post"]
    assert form["order_kept"] == 1 and form["score_correlation"] == pytest.approx(1)
    assert table["other_score_0"].tolist() == table["score_0"].tolist()


def test_without_gold_the_labels_are_the_truth():
    found, _ = reading.prompt_sensitivity(by_form, PAIRS)
    assert "accuracy_gold" not in found
    assert found["accuracy_noisy"] == found["accuracy_noisy_other_post"]


@pytest.mark.parametrize(
    ("own", "other", "baselines", "found"),
    [
        (0.83, 0.68, {"logprob": 0.75, "form": 0.7}, []),
        (0.83, 0.83, {}, ["does not read the prompt"]),
        (0.52, 0.51, {}, ["near chance"]),
        (0.8, 0.6, {"logprob": 0.82, "form": 0.7}, ["no better than the log-prob"]),
        (0.8, 0.78, {"form": 0.8}, ["does not read", "no better than a linear probe"]),
    ],
)
def test_diagnosis_of_a_reward_model(own, other, baselines, found):
    measured = {"accuracy_gold": own, "accuracy_gold_other_post": other, "order_kept": 0.9}
    measured |= {f"accuracy_{name}": value for name, value in baselines.items()}
    findings = diagnose_reward_model(measured)
    assert len(findings) == len(found)
    for finding, words in zip(findings, found, strict=True):
        assert words in finding.what and f"{own:.2f}" in finding.figure and finding.remedy


def test_a_diagnosis_needs_the_shuffled_prompt_test():
    with pytest.raises(ValueError, match="no accuracy_noisy_other_post, order_kept: pass"):
        diagnose_reward_model({"accuracy_noisy": 0.8})


# Pairs that differ in one fault only


def test_contrast_pairs_differ_in_their_fault_and_in_no_other():
    assert len(CONTRASTS) == 4 * 20
    for record in CONTRASTS:
        post = record["input_text"]
        better, worse = (
            measure(read_post(post), record[f"candidate_{i}"], find_post(post))
            for i in (record["choice"], 1 - record["choice"])
        )
        gap = {name: worse[name] - better[name] for name in ("covered", "wrong", "rambling")}
        expected = {"wrong fact": (-1, 1), "missing fact": (-1, 0)}
        assert (gap["covered"], gap["wrong"]) == expected.get(record["fault"], (0, 0)), record
        assert (gap["rambling"] > 0) == (record["fault"] == "rambling"), record
        assert worse["point"] == 0 or record["fault"] != "beside the point"
        assert (better["covered"], better["point"]) == (3, 1)
    assert 20 < sum(record["choice"] for record in CONTRASTS) < 60
    assert contrast_pairs([record["input_text"] for record in PAIRS[:120:6]]) == CONTRASTS


def test_a_wrong_fact_changes_nothing_but_the_fact():
    wrong = [record for record in CONTRASTS if record["fault"] == "wrong fact"]
    shared = [
        len(set(a.split()) & set(b.split())) / len(set(a.split()))
        for a, b in ((record["candidate_0"], record["candidate_1"]) for record in wrong)
    ]
    assert min(shared) > 0.3 and np.mean(shared) > 0.6


def test_accuracy_by_fault_shows_what_form_cannot_see():
    _, table = metrics.evaluate_reward_model(by_form, CONTRASTS, gold=gold_columns)
    correct = trust.in_gold_order(table)["correct"]
    found = trust.accuracy_by(correct, [record["fault"] for record in CONTRASTS])["accuracy"]
    assert found["rambling"] == 1
    assert found["wrong fact"] < 0.8 and found["beside the point"] < 0.8


# Baselines


def test_answer_logprobs_are_those_of_a_plain_forward_pass():
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    found = reading.answer_logprobs(policy, tokenizer, PAIRS[:5], "Be brief.", batch_size=2)
    assert found.shape == (5, 2)
    for record, scores in zip(PAIRS[:5], found, strict=True):
        prompt, _ = encode_prompts(tokenizer, [format_prompt(record["input_text"], "Be brief.")])
        for text, score in zip(candidate_texts(record, "Be brief."), scores, strict=True):
            ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                words = policy(input_ids=ids).logits[0, :-1].log_softmax(-1)
            chosen = words.gather(-1, ids[0, 1:, None])[prompt.shape[1] - 1 :]
            assert score == pytest.approx(chosen.sum().item(), abs=1e-3)


def test_log_probs_of_answers_see_wrong_facts_without_any_preference():
    """What a reward model must beat: the base model's own log-prob, 0.98 in the SFT model's."""
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    wrong = [record for record in CONTRASTS if record["fault"] == "wrong fact"]
    scores = reading.answer_logprobs(policy, tokenizer, wrong)
    found, _ = metrics.evaluate_scores(scores, wrong)
    assert found["accuracy_noisy"] > 0.85


def test_the_probe_on_form_finds_what_form_decides_and_nothing_else():
    labelled = [{**r, "choice": int(len(r["candidate_1"]) < len(r["candidate_0"]))} for r in PAIRS]
    scores = reading.form_scores(labelled[:150], labelled[150:])
    assert scores.shape == (50, 2)
    assert metrics.evaluate_scores(scores, labelled[150:])[0]["accuracy_noisy"] > 0.9
    rng = np.random.default_rng(0)
    coin = [{**record, "choice": int(rng.integers(2))} for record in PAIRS]
    scores = reading.form_scores(coin[:100], coin[100:])
    assert 0.3 < metrics.evaluate_scores(scores, coin[100:])[0]["accuracy_noisy"] < 0.7


def test_the_probe_takes_features_of_ones_own():
    words = {"words": lambda text: len(text.split())}
    scores = reading.form_scores(PAIRS, PAIRS, words)
    lengths = np.array([[len(r[f"candidate_{i}"].split()) for i in (0, 1)] for r in PAIRS])
    assert abs(np.corrcoef(scores.ravel(), lengths.ravel())[0, 1]) == pytest.approx(1)
