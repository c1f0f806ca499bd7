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
    assert l2["pairs"] == l2["deeplake_rows"] >= 2000
    assert 0.90 <= l2["label_agreement"] <= 0.95
    assert 0.83 <= l2["annotator_agreement"] <= 0.88
    assert 0.02 <= l2["true_disagreement"] <= 0.10
    assert 0.88 <= l2["ceiling"] <= l2["bound"] - 0.01, "the formula must promise too much"
    assert l2["longer_chosen"] == pytest.approx(l2["longer_truly_better"], abs=0.02)
    assert l2["longer_chosen"] <= 0.45, "the longer one mostly loses"


def test_l2_what_to_tell_depends_on_the_post_and_demonstrations_are_poor(l2):
    assert l2["best_recipe"] <= l2["best_for_each_post"] - 1
    assert l2["best_for_each_post"] >= 4
    assert l2["gold_demonstrations"] <= 1


def test_l3_the_pipeline_learns_here(l3):
    assert (l3["steps_small_reward"], l3["steps_small_rl"]) == (1410, 320)
    assert l3["test_prompts"] >= 256
    assert l3["gold_gain"] >= 2.0
    assert l3["gold_ppo"] >= 2.4
    assert l3["kl"] <= 3
    assert 0.69 <= l3["accuracy"] < l3["accuracy_gold"]
    assert l3["win_rate"] >= 0.7


def test_l4_the_tuned_model_wins(l4):
    assert l4["test_prompts"] >= 256
    assert l4["win_rate"] >= 0.75
    assert l4["win_rate_low"] >= 0.7
    assert l4["win_rate_low"] < l4["win_rate"] < l4["win_rate_high"]
    assert l4["gold_gain"] >= 2.0
    assert l4["kl"] <= 3
    for name in ("accuracy", "precision", "recall", "f1", "accuracy_validation"):
        assert 0.69 <= l4[name] <= 0.96
    assert l4["accuracy"] <= l4["ceiling"] + 0.04, "600 pairs: three standard errors"


def test_l4_most_of_the_gain_is_not_for_free(l4):
    assert l4["gold_tuned_1"] >= l4["gold_free"] + 0.8, "above every temperature of SFT"
    assert l4["gold_tuned_0"] >= l4["gold_best_recipe"] + 0.5, "it must ask what matters"
    assert l4["wrong_share_tuned_1"] <= 0.6 * l4["wrong_share_untuned_1"]
    assert l4["wrong_share_tuned_04"] <= l4["wrong_share_untuned_04"]


def test_l4_fresh_preferences_do_no_harm(l4):
    # About 140 pairs: of the difference of the accuracies the standard error is about 0.035.
    assert l4["accuracy_round_1"] >= 0.85, "so the fresh ones have little to mend"
    assert l4["accuracy_round_2"] >= l4["accuracy_round_1"] - 0.1
    assert l4["gold_gain_round_2"] >= -0.3, "round 2 must not spoil what round 1 has reached"


def test_l5_storage_is_set_up_used_and_cleaned(l5):
    assert (l5["checks_ready_before"], l5["checks_ready_after"]) == (0, 3)
    assert l5["files_uploaded"] == l5["objects_deleted"] == 2
    assert l5["objects_left"] == 1, "what is not the course's stays"


def test_l6_sft_learns_the_task_and_the_habit(l6):
    # Standard errors of gold: 0.2 to 0.3 at temperature 1, 0.1 below.
    assert l6["gold_sampled"] > l6["gold_base"] + 0.4
    assert l6["eos_rate"] > 0.97
    assert l6["habit_sampled"] == pytest.approx(l6["habit_taught"], abs=0.12)


def test_l6_no_temperature_makes_imitation_good(l6):
    assert l6["gold_base_best"] <= 1
    assert l6["gold_best"] <= 1.6, "a perfect summary is worth 4.5: there must be room for RLHF"
    assert l6["habit_greedy"] >= l6["habit_sampled"] + 0.2, "the mode of what was taught is poor"


def test_l7_reward_model_orders_held_out_pairs(l7):
    assert l7["test_pairs"] == 2000
    assert l7["accuracy_gold"] >= 0.90
    assert l7["accuracy_clear"] >= 0.94
    assert l7["accuracy_noisy"] >= 0.84
    assert 0.90 <= l7["label_agreement"] <= 0.95
    assert l7["accuracy_noisy"] < l7["accuracy_ceiling"] < l7["label_agreement"]
    assert l7["ceiling_formula"] >= l7["accuracy_ceiling"] + 0.01, "the formula promises too much"
    assert l7["calibration_error"] <= 0.07


def test_l7_more_labels_help_and_wrong_ones_are_found(l7):
    # Of the accuracies, measured on 300 pairs, the standard error is 0.024.
    assert l7["accuracy_fewest_pairs"] <= l7["accuracy_all_pairs"] - 0.03
    assert l7["accuracy_fewest_pairs"] < l7["accuracy_some_pairs"]
    assert l7["accuracy_some_pairs"] <= l7["accuracy_all_pairs"] + 0.03
    assert l7["accuracy_by_scores"] >= l7["accuracy_fewest_pairs"]
    assert l7["noise_estimate"] == pytest.approx(0.2, abs=0.05)
    assert l7["noise_auc"] >= 0.75


def test_l7_the_reading_tests_tell_apart_what_reads_and_what_does_not(l7):
    # Standard errors: 0.01 to 0.03 on 300 pairs, up to 0.045 on the 128 where only a fact differs.
    assert l7["form_own_post"] == pytest.approx(l7["form_other_post"], abs=1e-9)
    assert l7["blind_own_post"] <= l7["blind_other_post"] + 0.08
    assert l7["last_token_facts_only"] <= 0.8 <= l7["logprob_facts_only"]
    assert l7["last_token_weights_facts_only"] >= 0.85, "the knowledge is still in its weights"
    assert l7["same_data_facts_only"] >= l7["last_token_facts_only"] + 0.1
    assert l7["all_data_facts_only"] >= 0.85
    assert l7["all_data_other_post"] <= min(0.70, l7["all_data_own_post"] - 0.15)
    assert l7["same_data_own_post"] >= l7["last_token_own_post"] + 0.03
    assert l7["all_data_own_post"] >= l7["logprob_own_post"] + 0.08
    assert l7["all_data_own_post"] >= l7["form_own_post"] + 0.15


def test_l7_the_score_can_be_fooled(l7):
    assert l7["exploit_score"] >= 0.8, "in deviations of what the SFT model writes, about 0"
    assert l7["exploit_gold"] <= -1
    assert l7["exploit_gold_answer_tokens"] >= l7["exploit_gold"] + 1


def test_l8_ppo_raises_held_out_gold(l8):
    assert l8["test_prompts"] >= 256
    assert l8["steps"] <= 60
    assert l8["gold_ppo"] >= 2.6
    assert l8["gold_gain"] >= 1.0
    assert l8["gold_gain"] == pytest.approx(l8["gold_ppo"] - l8["gold_sft"], abs=1e-6)
    assert l8["kl"] <= 3
    assert l8["eos_rate"] >= 0.97


def test_l8_most_of_the_gain_no_temperature_gives(l8):
    assert l8["gold_sft_best_temperature"] >= l8["gold_sft"] + 0.3, "sharpening gives something"
    assert l8["above_free"] >= 0.8
    assert l8["above_free"] >= (l8["gold_ppo"] - l8["gold_sft"]) / 2
    at_best = max(l8["gold_ppo"], l8["gold_ppo_T04"], l8["gold_greedy"])
    assert at_best >= l8["gold_sft_best_temperature"] + 1
    assert at_best >= l8["gold_recipe"] + 0.5


def test_l8_ppo_tells_the_truth_and_comes_to_the_point(l8):
    assert l8["wrong_share_ppo"] <= 0.6 * l8["wrong_share_sft"]
    assert l8["wrong_facts_ppo"] <= l8["wrong_facts_sft"]
    assert l8["point_ppo"] >= l8["point_sft"] + 0.3


def test_l8_a_score_that_does_not_read_is_hacked_without_a_price_on_kl(l8):
    assert l8["hacked_reward_gain_sd"] >= 0.5
    assert l8["hacked_gold"] <= l8["gold_sft"] - 0.3
    assert l8["cured_gold"] >= l8["gold_sft"] + 0.5
    assert l8["unpriced_reader_gold"] >= l8["gold_sft"] + 1


def test_l8_the_truth_turns_while_the_proxy_stays_high(l8):
    assert l8["gold_at_turn"] >= l8["gold_sft"] + 0.5
    assert l8["gold_at_turn"] >= l8["hacked_gold"] + 1
    assert 0 < l8["kl_at_turn"] <= 8
    # In deviations of the SFT model's answers, best of 64; 24 prompts:
    assert l8["best_of_64_gold"] >= 0.5
    assert l8["best_of_64_gold"] > l8["best_of_64_gold_unreading"]
    assert l8["best_of_64_proxy"] > l8["best_of_64_gold_unreading"] + 0.5


def test_l8_some_pretraining_lowers_the_alignment_tax(l8):
    assert l8["perplexity_sft"] < l8["perplexity_ppo"]
    assert l8["perplexity_ptx"] < l8["perplexity_ppo"]
    assert l8["gold_ptx"] >= l8["gold_sft"] + 1


def test_l9_preferences_alone_raise_held_out_gold(l9):
    assert l9["test_prompts"] >= 256
    assert l9["gold_gain"] >= 1.2
    assert l9["gold_gain"] == pytest.approx(l9["gold_dpo"] - l9["gold_sft"], abs=1e-6)
    assert l9["win_rate_low"] >= 0.6
    assert 0 < l9["kl"] <= 3
    assert l9["eos_rate"] >= 0.95
    assert l9["loss_gap_to_trl"] <= 1e-4
    assert l9["accuracy_gold"] >= 0.78


def test_l9_no_temperature_gives_what_dpo_gives(l9):
    assert l9["gold_sft_best"] >= l9["gold_sft"]
    assert l9["gold_dpo"] >= l9["gold_sft_best"] + 0.5
    assert min(l9["gold_dpo_0.4"], l9["gold_dpo_greedy"]) >= l9["gold_sft_best"] + 1
    assert l9["wrong_share_dpo"] <= 0.7 * l9["wrong_share_sft"]


def test_l9_a_low_beta_leads_far_away(l9):
    assert 0 < l9["kl_highest_beta"] < l9["kl"] < l9["kl_lowest_beta"]
    assert l9["gold_lowest_beta"] < l9["gold_dpo"] - 0.5
    assert l9["gold_conservative"] >= l9["gold_sft"] + 0.4
    assert l9["rejected_logprob_change"] < l9["chosen_logprob_change"] < 0


def test_l10_imitating_its_own_best_answers_raises_gold(l10):
    assert l10["test_prompts"] >= 256
    assert l10["gold_gain"] >= 0.8
    assert l10["gold_gain"] == pytest.approx(l10["gold_rest"] - l10["gold_sft"], abs=1e-6)
    assert l10["gold_after_grow_1"] >= l10["gold_sft"] + 0.4
    assert l10["gold_best_of_4"] >= l10["gold_sft"] + 0.5, "few good examples go a long way"
    assert l10["kl"] <= 3
    assert l10["eos_rate"] >= 0.97


def test_l10_no_temperature_gives_what_the_filter_gives(l10):
    assert l10["gold_sft_best"] >= l10["gold_sft"]
    for method in ("rest", "best_of_4"):
        best = max(l10[f"gold_{method}{at}"] for at in ("", "_0.4", "_greedy"))
        assert best >= l10["gold_sft_best"] + 0.5
    assert l10["wrong_share_rest"] <= 0.8 * l10["wrong_share_sft"]


def test_l10_the_threshold_rises_and_the_kept_answers_get_better(l10):
    assert l10["kept_first"] == pytest.approx(0.5, abs=0.02)
    assert l10["kept_last"] == pytest.approx(0.25, abs=0.02)
    assert l10["gold_all_first"] + 0.5 <= l10["gold_kept_first"] <= l10["gold_kept_last"]


def test_l11_the_labeller_judges_the_answers_and_not_their_place(l11):
    assert l11["agreement_gold"] >= 0.70
    assert l11["agreement_human"] >= 0.62
    assert 0.84 <= l11["human_gold"] <= 0.94
    assert 0.3 <= l11["first_rate"] <= 0.75
    assert l11["consistency"] >= l11["consistency_base"] + 0.2


def test_l11_a_policy_learns_from_a_constitution(l11):
    assert l11["test_prompts"] >= 256
    assert l11["gold_gain"] >= 0.8
    assert l11["gold_gain"] == pytest.approx(l11["gold_rlaif"] - l11["gold_sft"], abs=1e-6)
    assert l11["gold_gain_rlhf"] >= 0.8
    for who in ("rlhf", "rlaif"):
        best = max(l11[f"gold_{who}{at}"] for at in ("", "_0.4", "_greedy"))
        assert best >= l11["gold_sft_best"] + 0.5, "no temperature gives what labels give"
    assert l11["kl"] <= 3
    assert l11["eos_rate"] >= 0.97
