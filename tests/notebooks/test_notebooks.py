"""Runs the notebooks at `tiny`, headless, and asserts what each has measured (seed 0).

A test that takes `l9` gets the numbers that L9 recorded; `-k l9_` runs that notebook alone.
"""

import nbformat
import pytest

from rlhf_helpers.runs import runs_dir

pytestmark = pytest.mark.slow


def test_every_cell_ran_and_every_solution_is_right(lesson, results):
    executed = nbformat.read(runs_dir() / "tiny" / "notebooks" / lesson.name, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code if cell.source.strip())
    assert results(lesson)["seconds"] > 0
    solutions = [cell for cell in code if "solution" in cell.metadata.get("tags", [])]
    for cell in solutions:
        assert cell.outputs[-1].data["text/plain"].startswith("✓"), cell.source


def test_l1_ppo_reaches_the_closed_form_optimum(l1):
    assert 0 <= l1["total_variation"] <= 0.02
    assert l1["kl_lowest_beta"] > 1, "a low beta must lead far from the reference"


def test_l2_describes_the_preferences(l2):
    assert l2["pairs"] == l2["deeplake_rows"] == 10_000
    assert 0.87 <= l2["label_agreement"] <= 0.91
    assert 0.76 <= l2["annotator_agreement"] <= 0.82
    assert 0.04 <= l2["true_disagreement"] <= 0.10
    assert l2["ceiling"] == pytest.approx(l2["label_agreement"], abs=0.03)


def test_l3_the_pipeline_learns_here(l3):
    assert (l3["steps_small_reward"], l3["steps_small_rl"]) == (1410, 320)
    assert l3["test_prompts"] >= 256
    assert l3["gold_gain"] >= 1.0
    assert l3["gold_ppo"] >= 2.6
    assert l3["kl"] <= 3
    assert 0.69 <= l3["accuracy"] < l3["accuracy_gold"]
    assert l3["win_rate"] >= 0.65


def test_l4_the_tuned_model_wins(l4):
    assert l4["test_prompts"] >= 256
    assert l4["win_rate"] >= 0.65  # .70 to .74 on some processors, .696 on another
    assert l4["win_rate_low"] >= 0.60
    assert l4["win_rate_low"] < l4["win_rate"] < l4["win_rate_high"]
    assert l4["gold_gain"] >= 1.0
    assert l4["kl"] <= 3
    for name in ("accuracy", "precision", "recall", "f1", "accuracy_validation"):
        assert 0.69 <= l4[name] <= 0.9


def test_l4_fresh_preferences_teach_the_reward_model_about_the_tuned_answers(l4):
    # About 200 pairs, a standard error of 0.03: two runs of the same code rose by 0.14 and 0.01.
    assert l4["accuracy_round_2"] >= l4["accuracy_round_1"] - 0.03
    assert l4["gold_gain_round_2"] >= -0.3, "round 2 must not spoil what round 1 has reached"


def test_l5_storage_is_set_up_used_and_cleaned(l5):
    assert (l5["checks_ready_before"], l5["checks_ready_after"]) == (0, 3)
    assert l5["files_uploaded"] == l5["objects_deleted"] == 2
    assert l5["objects_left"] == 1, "what is not the course's stays"


def test_l6_sft_learns_the_task_and_the_habit(l6):
    assert l6["gold_sampled"] >= 1.2
    assert l6["gold_sampled"] > l6["gold_base"] + 0.5
    assert l6["gold_greedy"] < 4.2, "greedy SFT is so good that there is no room for RLHF"
    assert l6["eos_rate"] > 0.97


def test_l7_reward_model_orders_held_out_pairs(l7):
    assert l7["test_pairs"] == 2000
    assert l7["accuracy_gold"] >= 0.79
    assert l7["accuracy_clear"] >= 0.82
    assert l7["accuracy_noisy"] >= 0.69
    assert 0.87 <= l7["label_agreement"] <= 0.91
    assert l7["accuracy_noisy"] < l7["accuracy_ceiling"]
    assert l7["accuracy_ceiling"] == pytest.approx(l7["label_agreement"], abs=0.03)
    assert l7["calibration_error"] <= 0.07
    assert l7["length_bias"] <= -0.15, "it likes brevity better than the annotators do"


def test_l7_more_labels_help_and_wrong_ones_are_found(l7):
    # Of the first two, measured on 300 pairs, the standard error is 0.024.
    assert l7["accuracy_fewest_pairs"] <= l7["accuracy_gold"] - 0.03
    assert l7["accuracy_fewest_pairs"] < l7["accuracy_some_pairs"] <= l7["accuracy_gold"] + 0.02
    assert l7["accuracy_by_scores"] >= l7["accuracy_fewest_pairs"]
    assert l7["noise_estimate"] == pytest.approx(0.2, abs=0.05)
    assert l7["noise_auc"] >= 0.75


def test_l7_the_reward_model_does_not_read_the_post(l7):
    assert l7["accuracy_gold_other_post"] == pytest.approx(l7["accuracy_gold"], abs=0.06)
    assert 0.4 <= l7["accuracy_facts_only"] <= 0.65, "a coin, where one fact is false"


def test_l7_the_score_can_be_fooled(l7):
    assert l7["exploit_score"] >= 0.8, "in deviations of what the SFT model writes, about 0"
    assert l7["exploit_gold"] <= 0


def test_l8_ppo_raises_held_out_gold(l8):
    assert l8["test_prompts"] >= 256
    assert l8["steps"] <= 60
    assert l8["gold_ppo"] >= 2.6
    assert l8["gold_gain"] >= 1.0
    assert l8["gold_gain"] == pytest.approx(l8["gold_ppo"] - l8["gold_sft"], abs=1e-6)
    assert l8["kl"] <= 3
    assert l8["eos_rate"] >= 0.97
    # Over three seeds they fall (benchmarks/chain.md); of one run the standard error is 0.035.
    assert l8["wrong_facts_ppo"] <= l8["wrong_facts_sft"] + 0.1


def test_l8_reward_is_hacked_without_a_price_on_kl_and_kl_coef_cures_it(l8):
    assert l8["hacked_reward_gain_sd"] >= 0.8
    assert l8["hacked_gold"] <= l8["gold_sft"] - 1.5
    assert l8["cured_gold"] > l8["gold_sft"]


def test_l8_the_truth_turns_while_the_proxy_rises(l8):
    assert l8["gold_at_turn"] >= l8["gold_sft"] + 0.5
    assert l8["gold_at_turn"] >= l8["hacked_gold"] + 2
    assert 0 < l8["kl_at_turn"] <= 5
    # In deviations of the SFT model's answers, best of 64:
    assert l8["best_of_64_proxy"] - 0.3 > l8["best_of_64_gold"] > 0.2
    assert l8["best_of_64_gold_little_data"] > 0.2


def test_l8_some_pretraining_lowers_the_alignment_tax(l8):
    assert l8["perplexity_sft"] < l8["perplexity_ppo"]
    assert l8["perplexity_ptx"] < l8["perplexity_ppo"]
    # On 128 prompts; two runs of this seed, of different rounding, gained 0.74 and 0.97.
    assert l8["gold_ptx"] >= l8["gold_sft"] + 0.5


def test_l9_preferences_alone_raise_held_out_gold(l9):
    assert l9["test_prompts"] >= 256
    assert l9["gold_gain"] >= 0.6
    assert l9["gold_gain"] == pytest.approx(l9["gold_dpo"] - l9["gold_sft"], abs=1e-6)
    assert l9["win_rate_low"] >= 0.6
    assert 0 < l9["kl"] <= 3
    assert l9["eos_rate"] >= 0.95
    assert l9["loss_gap_to_trl"] <= 1e-4
    assert l9["accuracy_gold"] >= 0.65


def test_l9_a_low_beta_leads_far_away(l9):
    assert 0 < l9["kl_highest_beta"] < l9["kl"] < l9["kl_lowest_beta"]
    assert l9["gold_lowest_beta"] < l9["gold_dpo"]
    assert min(l9["gold_ipo"], l9["gold_conservative"]) >= l9["gold_sft"] + 0.4
    assert l9["rejected_logprob_change"] < l9["chosen_logprob_change"] < 0


def test_l10_imitating_its_own_best_answers_raises_gold(l10):
    assert l10["test_prompts"] >= 256
    assert l10["gold_gain"] >= 0.6
    assert l10["gold_gain"] == pytest.approx(l10["gold_rest"] - l10["gold_sft"], abs=1e-6)
    assert l10["gold_after_grow_1"] >= l10["gold_sft"] + 0.4
    assert l10["gold_best_of_4"] >= l10["gold_sft"] + 0.5, "few good examples go a long way"
    assert l10["kl"] <= 3
    assert l10["eos_rate"] >= 0.97


def test_l10_the_threshold_rises_and_the_kept_answers_get_better(l10):
    assert l10["kept_first"] == pytest.approx(0.5, abs=0.02)
    assert l10["kept_last"] == pytest.approx(0.25, abs=0.02)
    assert l10["gold_all_first"] + 0.5 <= l10["gold_kept_first"] <= l10["gold_kept_last"]


def test_l11_the_labeller_judges_the_answers_and_not_their_place(l11):
    assert l11["agreement_gold"] >= 0.70
    assert l11["agreement_human"] >= 0.62
    assert 0.84 <= l11["human_gold"] <= 0.94
    assert 0.3 <= l11["first_rate"] <= 0.7
    assert l11["consistency"] >= l11["consistency_base"] + 0.3


def test_l11_a_policy_learns_from_a_constitution(l11):
    assert l11["test_prompts"] >= 256
    assert l11["gold_gain"] >= 0.6
    assert l11["gold_gain"] == pytest.approx(l11["gold_rlaif"] - l11["gold_sft"], abs=1e-6)
    assert l11["gold_gain_rlhf"] >= 0.4
    assert l11["kl"] <= 3
    assert l11["eos_rate"] >= 0.97
