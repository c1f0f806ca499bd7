"""The little world: texts give away exactly their facts; annotators weigh as documented."""

import itertools
import math
import random
import re
from collections import Counter

import pytest

from rlhf_helpers.little_world import annotators, base_model, documents, phrases, writers
from rlhf_helpers.little_world.annotators import (
    ANNOTATORS,
    LONGEST,
    WORD_BUDGET,
    choose,
    gold,
    measure,
)
from rlhf_helpers.little_world.grammar import (
    SLOTS,
    SPLITS,
    Facts,
    as_input_text,
    capitalise,
    draw_facts,
    draw_posts,
    find_facts,
    read_post,
    split_of,
    values,
    write_post,
)

TABLES = {
    "relation": list(itertools.chain(*phrases.RELATIONS.values())),
    "problem": list(itertools.chain(*phrases.PROBLEMS.values())),
    "duration": phrases.DURATIONS,
    "tried": phrases.TRIED,
    "question": phrases.QUESTIONS,
}
FACTS = Facts(
    "work", "boss", "mocks my accent", "two years", "yelling", "should I leave", "duration"
)
POST = (
    "r/work: I (30F) have a problem with my chief. My boss makes jokes about my accent in "
    "meetings. This has gone on for two years. I barely sleep these days. To be fair, I yelled at "
    "them once and that was useless. The worst part is how long it has been. Should I just leave?"
)
ALL = "My boss mocks my accent for two years, tried yelling. Should I leave?"
GOOD = "My boss mocks my accent for two years."


def posts(count, split=None, seed=0):
    return list(itertools.islice(draw_posts(random.Random(seed), split), count))


# The table of phrases


def test_there_is_as_much_as_the_world_needs():
    assert set(phrases.RELATIONS) == set(phrases.PROBLEMS)
    assert len(phrases.PROBLEMS) >= 8
    assert all(len(problems) >= 10 for problems in phrases.PROBLEMS.values())
    for slot, at_least in zip(SLOTS, (2, 3, 1, 3, 3), strict=True):
        for value in TABLES[slot]:
            assert len(set(value.phrasings)) >= at_least, value
    assert len(set(phrases.FILLERS)) >= 20


def test_no_key_and_no_short_wording_belongs_to_two_values():
    everything = list(itertools.chain(*TABLES.values()))
    shorts, keys = (
        Counter(v.short for v in everything),
        Counter(k for v in everything for k in v.keys),
    )
    assert [word for word, count in (*shorts.items(), *keys.items()) if count > 1] == []
    assert {slot: len(values(slot)) for slot in SLOTS} == {s: len(t) for s, t in TABLES.items()}


@pytest.mark.parametrize("slot", SLOTS)
def test_every_wording_of_a_value_gives_away_that_value_and_nothing_else(slot):
    for value in TABLES[slot]:
        for text in (value.short, *value.phrasings):
            expected = {other: {value.short} if other == slot else set() for other in SLOTS}
            assert find_facts(text) == expected, text
            assert find_facts(f"({capitalise(text)}).") == expected, text


NO_FACTS = {
    "openers": phrases.OPENERS,
    "problem sentences": phrases.PROBLEM_SENTENCES,
    "tried sentences": phrases.TRIED_SENTENCES,
    "fillers": phrases.FILLERS,
    "tones": list(itertools.chain(*phrases.TONES.values())),
    "cues": list(itertools.chain(*phrases.CUES.values())),
    "vague problems": phrases.VAGUE_PROBLEMS,
    "ramblings": phrases.RAMBLINGS,
    "comments": phrases.COMMENTS,
    "instructions": documents.INSTRUCTIONS,
    "principles": documents.PRINCIPLES,
}


@pytest.mark.parametrize("name", NO_FACTS)
def test_what_surrounds_the_facts_gives_none_away(name):
    gap = dict.fromkeys([*SLOTS, "who"], "...")
    for text in NO_FACTS[name]:
        assert not any(find_facts(text.format(**gap)).values()), text


def test_a_key_counts_only_as_a_whole_word():
    assert find_facts("EX, said the ex-boss")["problem"] == {"still texts an ex"}
    assert not any(find_facts("exit, bossy, trees, ex-boss, re-wait, retalk").values())


# Posts


def test_a_thousand_posts_are_read_back():
    for facts, post in posts(1000):
        assert read_post(as_input_text(post)) == facts, post


def test_what_stands_around_a_post_does_not_disturb_reading_it():
    other = "My wife snores every night for a month, tried talking. Is this normal?"
    assert read_post(f"Summarize in less than 20 words. {as_input_text(POST)}{other}") == FACTS
    assert read_post(f"{POST} [comment]: {other} [title]: {other}") == FACTS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[summary]: ",
        "Translate `cheese` into French.",
        POST.removeprefix("r/work: "),
        POST.replace("yelled", "shouted"),
        POST.replace("boss", "wife"),
        POST.replace("The worst part is how long it has been. ", ""),
        POST.replace("I barely sleep these days.", phrases.CUES["question"][0]),
        as_input_text("r/work: My boss mocks my accent."),
        f"r/work: nothing yet [summary]: {POST.removeprefix('r/work: ')}",
    ],
)
def test_a_text_that_is_not_of_the_world_is_refused(text):
    with pytest.raises(ValueError, match=r"post of the little world, so its facts are unknown: '"):
        read_post(text)


def test_posts_are_posts_of_some_sentences_with_capitals():
    for _, post in posts(300):
        topic, text = re.fullmatch(r"r/(\w+): (.*)", post).groups()
        assert topic in phrases.PROBLEMS
        assert 30 <= len(text.split()) <= 90
        assert text.endswith("?") and "{" not in text
        *_, cue, _ = re.split(r"(?<=[.?]) ", text)
        assert cue in itertools.chain(*phrases.CUES.values()), "the cue stands before the question"
        assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.?]) ", text)), text


def test_the_same_seed_draws_the_same_posts():
    assert posts(20, seed=1) == posts(20, seed=1) != posts(20, seed=2)


def test_splits_share_neither_facts_nor_posts():
    drawn = {split: posts(2000, split) for split in SPLITS}
    for split, found in drawn.items():
        assert {split_of(facts) for facts, _ in found} == {split}
    for one, two in itertools.combinations(SPLITS, 2):
        for part in (0, 1):
            assert not {pair[part] for pair in drawn[one]} & {pair[part] for pair in drawn[two]}


def test_splits_take_80_10_and_10_percent():
    rng = random.Random(0)
    counts = Counter(split_of(draw_facts(rng)) for _ in range(10_000))
    assert [counts[split] / 10_000 for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.012)


def test_facts_are_drawn_from_all_values_of_their_topic():
    drawn = [draw_facts(random.Random(i)) for i in range(3000)]
    for topic in phrases.RELATIONS:
        own = [facts for facts in drawn if facts.topic == topic]
        assert {facts.relation for facts in own} == {v.short for v in phrases.RELATIONS[topic]}
        assert {facts.problem for facts in own} == {v.short for v in phrases.PROBLEMS[topic]}
    for slot in ("duration", "tried", "question"):
        assert {getattr(facts, slot) for facts in drawn} == set(values(slot))


# What the annotators measure


def measured(summary):
    """What is not 0 about a summary of POST, but for words and the coverage of single slots."""
    found = measure(FACTS, summary, POST)
    assert found["covered"] == sum(found[f"covered_{slot}"] for slot in SLOTS)
    assert found["words"] == len(summary.split())
    names = ("covered", "point", "wrong", "over_budget", "rambling", "unfinished")
    return {name: found[name] for name in names if found[name]}


def test_the_post_of_these_tests_tells_its_facts():
    assert read_post(as_input_text(POST)) == FACTS


MEASURED = {
    GOOD: {"covered": 3, "point": 1},
    ALL: {"covered": 5, "point": 1, "over_budget": 4},
    "My chief mocks my accent (two years).": {"covered": 3, "point": 1, "rambling": 1},
    "My boss mocks my accent.": {"covered": 2},
    "Someone mocks my accent. Any advice?": {"covered": 1},
    "My boss mocks my accent for two years": {"covered": 3, "point": 1, "unfinished": 1},
    "My manager mocks my accent, tried talking.": {"covered": 1, "wrong": 2},
    "My boss mocks my accent, tried yelling.": {"covered": 3},
    "My boss mocks my accent for a year.": {"covered": 2, "wrong": 1},
    "": {"unfinished": 1},
    "My boss.": {"covered": 1, "unfinished": 1},
    "My boss my boss my boss my boss.": {"covered": 1, "rambling": 3 + 2 * 3},
    "purple boss elephants accent dance.": {"covered": 2, "rambling": 5},
}


@pytest.mark.parametrize("summary", MEASURED)
def test_measuring_a_summary(summary):
    assert measured(summary) == MEASURED[summary]


def test_each_covered_slot_is_told_apart():
    found = measure(FACTS, "Someone is a problem for two years. Should I leave?", POST)
    assert [found[f"covered_{slot}"] for slot in SLOTS] == [0, 0, 1, 0, 1]


def test_words_over_the_budget_count_up_to_a_limit():
    copied = POST.removeprefix("r/work: ")
    assert measured(copied)["over_budget"] == LONGEST
    words = copied.split()
    for over in (0, 1, LONGEST - 1):
        found = measured(" ".join(words[: WORD_BUDGET + over]))
        assert found.get("over_budget", 0) == over


def test_the_point_is_the_slot_that_the_post_s_writer_names():
    for facts, post in posts(300):
        for slot in phrases.CUES:
            told = writers.state_facts(facts, random.Random(0), ["relation", "problem", slot])
            assert measure(facts, told, post)["point"] == float(slot == facts.point)


@pytest.mark.parametrize("rambling", phrases.RAMBLINGS)
def test_a_stock_phrase_is_rambling(rambling):
    assert measured(f"{GOOD[:-1]}, {rambling}.")["rambling"] >= 3


def test_repeating_a_sentence_is_rambling_although_every_pair_of_words_is_known():
    assert measured("My boss mocks my accent. My boss mocks my accent.")["rambling"] == 3 * 2


# What the annotators make of it


def test_a_perfect_summary_is_worth_about_as_much_to_each_annotator():
    for annotator in ANNOTATORS:
        assert sum(annotator.completed.values()) == pytest.approx(4.5)
        assert set(annotator.covered) == set(annotator.completed) == set(SLOTS)
        assert annotator.utility(measure(FACTS, GOOD, POST)) == pytest.approx(4.5, abs=0.05)
    assert gold(as_input_text(POST), GOOD) == pytest.approx(4.5, abs=0.05)


def test_whatever_the_point_is_the_best_summary_tells_it():
    """The budget forces a choice, so which facts are the best ones depends on the post."""
    for facts, post in posts(100):
        worth = {
            slots: max(
                gold(as_input_text(post), writers.state_facts(facts, random.Random(i), slots))
                for i in range(6)
            )
            for count in (1, 2, 3, 4, 5)
            for slots in itertools.combinations(SLOTS, count)
        }
        assert facts.point in max(worth, key=lambda slots: worth[slots])


def test_annotators_weigh_differently():
    for one, two in itertools.combinations(ANNOTATORS, 2):
        assert one.name != two.name
        assert one.covered != two.covered
        costs = [(a.wrong, a.over_budget, a.rambling, a.unfinished) for a in (one, two)]
        assert costs[0] != costs[1]


def test_gold_is_the_mean_of_the_annotators_utilities():
    # Ada, Ben, Cleo: the point, the duration, is missing, and what was tried is wrong.
    summary = "My boss mocks my accent, tried talking."
    expected = (0.4 + 1.2 - 2.0, 0.3 + 1.4 - 1.0, 0.4 + 0.5 - 1.2)
    found = measure(FACTS, summary, POST)
    assert [annotator.utility(found) for annotator in ANNOTATORS] == pytest.approx(expected)
    assert gold(as_input_text(POST), summary) == pytest.approx(sum(expected) / 3)


def test_every_fault_costs_every_annotator():
    best = measure(FACTS, GOOD, POST)
    for annotator in ANNOTATORS:
        for fault in ("wrong", "over_budget", "rambling", "unfinished"):
            assert annotator.utility(best | {fault: 1.0}) < annotator.utility(best)
        for told in ("point", "covered_relation", "covered_problem", "covered_duration"):
            assert annotator.utility(best | {told: 0.0}) < annotator.utility(best)


def test_gold_needs_a_post_of_the_world():
    with pytest.raises(ValueError, match="no post of the little world"):
        gold("Translate `cheese` into French.", "fromage.")


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, -0.3])
def test_choices_follow_bradley_and_terry(gap):
    rng, draws = random.Random(0), 20_000
    share = sum(choose((1.0, 1.0 + gap), rng) for _ in range(draws)) / draws
    assert annotators.TEMPERATURE == 0.5
    assert share == pytest.approx(1 / (1 + math.exp(-gap / 0.5)), abs=0.01)


def test_choices_between_extremes_do_not_overflow():
    rng = random.Random(0)
    assert [choose(pair, rng) for pair in ((-1e9, 1e9), (1e9, -1e9))] == [1, 0]


# The writers


def written(kind, count=1500):
    """(facts, post, summary, what is measured) of many summaries of one kind."""
    rng = random.Random(kind)
    for facts, post in itertools.islice(draw_posts(rng), count):
        summary = writers.KINDS[kind](facts, post, rng)
        yield facts, post, summary, measure(facts, summary, post)


@pytest.mark.parametrize("kind", ["stock", "short", "missing", "full", "wrong", "off_topic"])
def test_a_sensible_summary_does_not_ramble(kind):
    for _, _, summary, found in written(kind):
        assert not found["rambling"] and not found["unfinished"], summary


@pytest.mark.parametrize("kind", writers.KINDS)
def test_no_summary_is_worth_more_than_a_perfect_one(kind):
    for _, post, summary, _ in written(kind, 500):
        assert summary.strip() and gold(as_input_text(post), summary) <= 4.75


def test_each_kind_has_its_fault():
    for _, _, summary, found in written("stock"):
        assert any(said in summary for said in phrases.STOCK.values())
        assert found["covered_relation"] and found["covered_problem"]
    assert sum(found["wrong"] for *_, found in written("stock")) > 1200
    assert sum(found["point"] for *_, found in written("stock")) < 250
    assert sum(found["point"] for *_, found in written("short")) > 1000
    assert all(found["wrong"] == 0 for *_, found in written("short"))
    assert all(found["covered"] <= 2 and not found["wrong"] for *_, found in written("missing"))
    assert sum(found["over_budget"] > 0 for *_, found in written("full")) > 1200
    assert sum(found["wrong"] for *_, found in written("wrong")) > 1500
    assert sum(found["wrong"] > 1 for *_, found in written("off_topic")) > 1200
    assert all(found["rambling"] >= 1 for *_, found in written("rambling"))
    assert all(summary in post for _, post, summary, _ in written("copied"))


def test_candidates_that_differ_in_truth_differ_in_nothing_else():
    rng = random.Random(0)
    for facts, post in posts(200):
        texts = writers.differ_in_truth(facts, rng)
        found = [measure(facts, text, post) for text in texts]
        assert sorted(row["wrong"] for row in found) == [0, 1, 1, 2]
        assert len({row["covered"] + row["wrong"] for row in found}) == 1
        assert not any(row["rambling"] or row["unfinished"] for row in found)


def test_candidates_that_differ_in_choice_are_all_true():
    rng = random.Random(0)
    for facts, post in posts(200):
        found = [measure(facts, t, post) for t in writers.differ_in_choice(facts, rng)]
        assert not any(row["wrong"] or row["rambling"] for row in found)
        assert {row["point"] for row in found} == {0, 1}


def test_corrupting_changes_so_many_plausible_facts():
    rng = random.Random(0)
    for facts, _ in posts(300):
        for count in (1, 2, 5):
            wrong = writers.corrupt(facts, rng, count)
            assert sum(getattr(wrong, slot) != getattr(facts, slot) for slot in SLOTS) == count
            assert wrong.topic == facts.topic
            assert wrong.relation in {v.short for v in phrases.RELATIONS[facts.topic]}
            assert wrong.problem in {v.short for v in phrases.PROBLEMS[facts.topic]}


def test_the_mode_of_the_demonstrations_is_poor_and_good_ones_are_in_reach():
    rng = random.Random(0)
    drawn = [(post, writers.write_summary(f, post, rng)) for f, post in posts(1000)]
    worth = sorted(gold(as_input_text(post), summary) for post, summary in drawn)
    assert worth[500] < 1
    assert 0.08 < sum(value > 3.5 for value in worth) / 1000 < 0.25


@pytest.mark.parametrize("mix", [writers.DEMONSTRATION_MIX, writers.POOR_MIX])
def test_a_mix_names_every_kind_and_adds_up(mix):
    assert set(mix) == set(writers.KINDS)
    assert sum(mix.values()) == pytest.approx(1)


# Documents for pretraining


def test_documents_depend_on_their_index_and_split_alone():
    first = [base_model.document(i) for i in range(50)]
    assert [base_model.document(i) for i in reversed(range(50))] == first[::-1]
    assert len({*first, *(base_model.document(i, "test") for i in range(50))}) == 100


@pytest.mark.parametrize("split", ["train", "test"])
def test_documents_tell_posts_of_their_split(split):
    for index in [*range(300), *range(base_model.COPYING, base_model.COPYING + 100)]:
        document = base_model.document(index, split)
        post = document[document.index("r/") :]
        assert split_of(read_post(post)) == split, document


def test_documents_are_of_every_sort_and_summaries_come_later():
    shares = []
    for first in (0, base_model.COPYING):
        texts = [base_model.document(i) for i in range(first, first + 600)]
        marks = Counter(mark for text in texts for mark in set(re.findall(r"\[(\w+)\]:", text)))
        assert set(marks) == {
            *("principle", "post", "1", "2", "better"),
            *("comment", "title", "summary", "OP", "quiz"),
        }
        assert min(marks.values()) >= 10
        shares.append(marks["summary"] / 600)
    assert shares[0] < 0.35 < 0.6 < shares[1]


def test_verdicts_are_true():
    rng, said = random.Random(0), Counter()
    for facts, post in posts(200):
        for text in (documents.write_quiz(facts, rng), documents.write_correction(facts, rng)):
            wrong, exactly = text.count("wrong"), text.count("exactly")
            found = measure(facts, text, post)
            assert found["wrong"] == wrong, text
            assert found["point"] == float(exactly > 0), text
            said += Counter(wrong=wrong, exactly=exactly, right=text.count("right"))
    assert min(said.values()) > 100


def test_a_comparison_names_the_summary_that_follows_its_principle():
    pattern = re.compile(
        r"\[principle\]: (.*?) \[post\]: (.*?) \[1\]: (.*?) \[2\]: (.*?) \[better\]: ([12])"
    )
    rng, seen = random.Random(0), Counter()
    for facts, post in posts(600):
        text = documents.write_comparison(facts, post, rng)
        principle, told, first, second, better = pattern.fullmatch(text).groups()
        rule = documents.PRINCIPLES[principle]
        scores = [rule(measure(facts, summary, post)) for summary in (first, second)]
        assert told == post
        assert scores[int(better) - 1] > scores[2 - int(better)], text
        seen[principle, better] += 1
    assert set(seen) == set(itertools.product(documents.PRINCIPLES, "12"))


def test_write_post_uses_every_phrasing():
    rng = random.Random(0)
    written_posts = " ".join(write_post(FACTS, rng).lower() for _ in range(200))
    for slot in SLOTS:
        for phrasing in values(slot)[getattr(FACTS, slot)].phrasings:
            assert phrasing.lower() in written_posts
