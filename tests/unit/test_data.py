"""The shipped data sets and base model, and how they are made."""

import functools
import itertools
import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers import schemas
from rlhf_helpers.little_world import build
from rlhf_helpers.little_world.annotators import ANNOTATORS, TEMPERATURE, gold, measure
from rlhf_helpers.little_world.base_model import CONTEXT, document
from rlhf_helpers.little_world.grammar import SPLITS, draw_posts, read_post, split_of
from rlhf_helpers.little_world.writers import state_facts, write_summary
from rlhf_helpers.runs import data_dir
from rlhf_helpers.scales import Scale

FOLDER = data_dir() / "summarize"
READERS = {
    "demonstrations": (schemas.read_demonstrations, build.DEMONSTRATIONS),
    "prompts": (schemas.read_prompts, build.PROMPTS),
    "pretraining": (schemas.read_texts, build.DOCUMENTS),
    "preferences": (schemas.read_preferences, build.PREFERENCES),
    "rankings": (schemas.read_rankings, build.RANKINGS),
}
FILES = [(name, split) for name, (_, sizes) in READERS.items() for split in sizes]
TASK_FILES = [(name, split) for name, split in FILES if name != "pretraining"]
UTILITY = {annotator.name: annotator.utility for annotator in ANNOTATORS}


@functools.cache
def shipped(name: str, split: str) -> list[dict]:
    return READERS[name][0](FOLDER / f"{name}_{split}.jsonl")


@functools.cache
def by_annotator() -> list[dict]:
    return schemas.read_preferences(FOLDER / "preferences_by_annotator.jsonl")


def text_of(record: dict) -> str:
    return record.get("input_text") or record["text"]


def post_of(record: dict) -> str:
    return re.search(r"(?s)r/\w+: .*?(?=\s*\[\w+\]:|$)", text_of(record))[0]


# What is shipped


def test_every_file_is_there_and_no_other():
    expected = {f"{name}_{split}.jsonl" for name, split in FILES}
    expected |= {"preferences_by_annotator.jsonl", "judgements.jsonl"}
    assert {path.name for path in FOLDER.iterdir()} == expected


@pytest.mark.parametrize(("name", "split"), FILES)
def test_a_file_reads_strictly_and_has_its_size(name, split):
    assert len(shipped(name, split)) == READERS[name][1][split]


def test_everything_is_under_15_megabytes():
    assert sum(path.stat().st_size for path in data_dir().rglob("*") if path.is_file()) < 15e6


@pytest.mark.parametrize(
    ("name", "split"), [(n, s) for n, (_, sizes) in build.GRAMMAR_FILES.items() for s in sizes]
)
def test_the_grammar_s_files_come_out_bit_for_bit_the_same(tmp_path, name, split):
    records, _ = build.GRAMMAR_FILES[name]
    schemas.write_jsonl(tmp_path / "again.jsonl", itertools.islice(records(split), 200))
    lines = (FOLDER / f"{name}_{split}.jsonl").read_bytes().splitlines(keepends=True)
    assert (tmp_path / "again.jsonl").read_bytes() == b"".join(lines[:200])


@pytest.mark.parametrize(("name", "split"), TASK_FILES)
def test_prompts_end_in_the_mark_of_the_task(name, split):
    for record in shipped(name, split):
        assert re.fullmatch(r"(?s)r/\w+: .*\? \[summary\]: ", record["input_text"])


def test_splits_share_no_post_and_no_combination_of_facts():
    posts, facts = ({split: set() for split in SPLITS} for _ in range(2))
    for name, split in FILES:
        for record in shipped(name, split):
            posts[split].add(post_of(record))
            facts[split].add(read_post(text_of(record)))
    assert {split: {split_of(f) for f in found} for split, found in facts.items()} == {
        split: {split} for split in SPLITS
    }
    for one, two in itertools.combinations(SPLITS, 2):
        assert not posts[one] & posts[two]
        assert not facts[one] & facts[two]


def test_reported_numbers_rest_on_enough_data():
    assert len(shipped("preferences", "test")) >= 2000
    assert len(shipped("prompts", "test")) >= 256


# Preferences and rankings


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_agree_with_the_gold_order_as_often_as_stated(split):
    right = pairs = 0
    for record in shipped("preferences", split):
        values = [gold(record["input_text"], record[f"candidate_{i}"]) for i in (0, 1)]
        if abs(values[0] - values[1]) > 1e-9:
            pairs += 1
            right += (values[1] > values[0]) == (record["choice"] == 1)
    assert pairs > 0.9 * len(shipped("preferences", split))
    assert 0.91 <= right / pairs <= 0.94


@pytest.mark.parametrize("split", build.PREFERENCES)
def test_neither_position_nor_annotator_is_favoured(split):
    records = shipped("preferences", split)
    spread = 4 * 0.5 / math.sqrt(len(records))  # four standard deviations of a fair coin
    assert sum(r["choice"] for r in records) / len(records) == pytest.approx(0.5, abs=spread)
    for annotator in ANNOTATORS:
        share = sum(r["annotator"] == annotator.name for r in records) / len(records)
        assert share == pytest.approx(1 / 3, abs=spread)


def test_some_training_pairs_are_labelled_by_all_annotators():
    pair = lambda r: (r["input_text"], r["candidate_0"], r["candidate_1"])  # noqa: E731
    records = by_annotator()
    pairs = build.BY_ALL_ANNOTATORS
    assert len(records) == 3 * pairs
    triples = [records[i : i + 3] for i in range(0, 3 * pairs, 3)]
    for triple in triples:
        assert len({pair(record) for record in triple}) == 1
        assert [record["annotator"] for record in triple] == [a.name for a in ANNOTATORS]
    assert len({pair(triple[0]) for triple in triples}) == pairs
    known = {pair(r): (r["annotator"], r["choice"]) for r in shipped("preferences", "train")}
    for triple in triples:
        assert known[pair(triple[0])] in {(r["annotator"], r["choice"]) for r in triple}
    agree = sum(len({r["choice"] for r in triple}) == 1 for triple in triples)
    assert 0.5 < agree / pairs < 0.95


@pytest.mark.parametrize("split", build.RANKINGS)
def test_rankings_order_four_different_candidates_best_first(split):
    place = [0.0] * 4
    for record in shipped("rankings", split):
        assert len({text.strip() for text in record["candidates"]}) == 4
        assert sorted(record["ranking"]) == [0, 1, 2, 3]
        assert record["annotator"] in UTILITY
        for i, candidate in enumerate(record["ranking"]):
            place[i] += gold(record["input_text"], record["candidates"][candidate])
    gaps = [one - two for one, two in itertools.pairwise(place)]
    assert all(gap > 0.2 * len(shipped("rankings", split)) for gap in gaps), place


# How they are made


def writers_candidates(name, split, count, sft_model):
    """Stands in for `build._candidates`: all by the writers, no model."""
    rng = random.Random(f"{name}/{split}")
    for facts, post in draw_posts(rng, split):
        texts = list(dict.fromkeys(write_summary(facts, post, rng) for _ in range(3 * count)))
        if len(texts) >= count:
            yield facts, post, texts[:count]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A folder of preferences and rankings whose candidates are all by the writers."""
    folder = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_candidates", writers_candidates)
        patch.setattr(build, "PREFERENCES", {"train": 1500, "test": 20})
        patch.setattr(build, "RANKINGS", {"train": 500})
        patch.setattr(build, "BY_ALL_ANNOTATORS", 400)
        build.write_sampled_files(folder, Path("no model"))
    return folder


def utilities(record: dict, texts: list[str]) -> list[float]:
    facts = read_post(record["input_text"])
    measured = [measure(facts, text, record["input_text"]) for text in texts]
    return [UTILITY[record["annotator"]](m) for m in measured]


def z_score(wins: list[bool], utility_gaps: list[float]) -> float:
    """How far the number of wins is from Bradley and Terry's, in standard deviations."""
    chances = [1 / (1 + math.exp(-gap / TEMPERATURE)) for gap in utility_gaps]
    return (sum(wins) - sum(chances)) / math.sqrt(sum(p * (1 - p) for p in chances))


@pytest.mark.parametrize("name", ["preferences_train", "preferences_by_annotator"])
def test_choices_have_the_stated_noise(labelled, name):
    records = schemas.read_preferences(labelled / f"{name}.jsonl")
    for annotator in ANNOTATORS:
        own = [record for record in records if record["annotator"] == annotator.name]
        pairs = [utilities(r, [r["candidate_0"], r["candidate_1"]]) for r in own]
        gaps = [abs(one - two) for one, two in pairs]
        wins = [u[r["choice"]] >= u[1 - r["choice"]] for u, r in zip(pairs, own, strict=True)]
        decided = [i for i, gap in enumerate(gaps) if gap]
        assert len(decided) > 350
        assert abs(z_score([wins[i] for i in decided], [gaps[i] for i in decided])) < 3.5


def test_every_pair_of_a_ranking_has_the_stated_noise(labelled):
    wins, gaps = {}, {}
    for record in schemas.read_rankings(labelled / "rankings_train.jsonl"):
        worth = utilities(record, record["candidates"])
        for i, j in itertools.combinations(range(4), 2):
            ranking = record["ranking"]
            wins.setdefault((i, j), []).append(ranking.index(i) < ranking.index(j))
            gaps.setdefault((i, j), []).append(worth[i] - worth[j])
    assert all(abs(z_score(wins[pair], gaps[pair])) < 3.5 for pair in wins)


def test_the_first_of_a_ranking_is_a_choice_among_all(tmp_path, monkeypatch):
    """Plackett and Luce: the chances of the first place are the softmax of the utilities.

    Other kinds of noise, with the same pairs, differ where one of several is a little better.
    """
    facts, post = next(draw_posts(random.Random(0)))
    one = state_facts(facts, random.Random(0), ["relation", "problem", facts.point])
    others = [one.replace("My ", word) for word in ("Some ", "Any ", "Every ")]  # an odd pair each
    texts = [one, *others]
    monkeypatch.setattr(build, "_candidates", lambda *_: itertools.repeat((facts, post, texts)))
    monkeypatch.setattr(build, "PREFERENCES", {})
    monkeypatch.setattr(build, "RANKINGS", {"train": 2000})
    build.write_sampled_files(tmp_path, Path("no model"))
    wins, chances = 0, []
    for record in schemas.read_rankings(tmp_path / "rankings_train.jsonl"):
        odds = [math.exp(utility / TEMPERATURE) for utility in utilities(record, texts)]
        wins += record["ranking"][0] == 0
        chances.append(odds[0] / sum(odds))
    assert 0.35 < sum(chances) / 2000 < 0.55
    assert abs(wins - sum(chances)) < 3.5 * math.sqrt(sum(p * (1 - p) for p in chances))


def test_writing_the_grammar_s_files_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    files = build.GRAMMAR_FILES.items()
    small = {name: (records, dict.fromkeys(sizes, 5)) for name, (records, sizes) in files}
    monkeypatch.setattr(build, "GRAMMAR_FILES", small)
    for folder in ("one", "two"):
        build.write_grammar_files(tmp_path / "new" / folder)
    for path in (tmp_path / "new" / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / "two" / path.name).read_bytes()
        assert len(path.read_bytes().splitlines()) == 5
    assert len(list((tmp_path / "new" / "one").iterdir())) == 8


def test_sampled_files_hold_different_candidates_and_come_out_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "POSTS_AT_ONCE", 4)
    monkeypatch.setattr(build, "PREFERENCES", {"train": 6})
    monkeypatch.setattr(build, "RANKINGS", {"test": 3})
    monkeypatch.setattr(build, "BY_ALL_ANNOTATORS", 2)
    monkeypatch.setattr(build, "MAX_NEW_TOKENS", 12)
    for folder in ("one", "two"):
        build.write_sampled_files(tmp_path / folder, Scale().base_model)
    assert len(schemas.read_preferences(tmp_path / "one" / "preferences_train.jsonl")) == 6
    assert len(schemas.read_preferences(tmp_path / "one" / "preferences_by_annotator.jsonl")) == 6
    rankings = schemas.read_rankings(tmp_path / "one" / "rankings_test.jsonl")
    assert [len(set(record["candidates"])) for record in rankings] == [4, 4, 4]
    assert {split_of(read_post(record["input_text"])) for record in rankings} == {"test"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# The base model


@pytest.fixture(scope="module")
def base_tokenizer():
    return AutoTokenizer.from_pretrained(Scale().base_model)


def test_the_base_model_is_a_small_opt_with_a_long_enough_context():
    model, report = AutoModelForCausalLM.from_pretrained(
        Scale().base_model, output_loading_info=True
    )
    assert model.config.model_type == "opt"
    assert model.num_parameters() <= 2.1e6
    assert model.config.max_position_embeddings >= 512
    assert not any(report.values()), report
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_tokenizer_has_opt_s_special_tokens(base_tokenizer):
    tokenizer, config = base_tokenizer, json.loads((Scale().base_model / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.bos_token == tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token == "<pad>"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(tokenizer, name) == config[name]
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", CONTEXT)
    ids = tokenizer("a post")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids[1:]
    padded = tokenizer(["a", "a longer post"], padding=True)
    assert padded["input_ids"][0][0] == tokenizer.pad_token_id
    assert padded["attention_mask"][0][0] == 0


@given(st.text())
def test_any_text_survives_the_tokenizer(base_tokenizer, text):
    assume(not any(token in text for token in base_tokenizer.all_special_tokens))
    ids = base_tokenizer(text)["input_ids"]
    assert base_tokenizer.unk_token_id not in ids
    assert base_tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(("name", "split"), FILES)
def test_texts_survive_the_tokenizer_and_leave_room_in_the_context(base_tokenizer, name, split):
    texts = [text_of(record) for record in shipped(name, split)[:100]]
    ids = base_tokenizer(texts)["input_ids"]
    assert base_tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    assert max(map(len, ids)) <= CONTEXT - (name != "pretraining") * 64


@torch.no_grad()
def test_the_base_model_foretells_held_out_documents_as_its_card_says(base_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(Scale().base_model, dtype=torch.float32)
    card = json.loads((Scale().base_model / "metrics.json").read_text())
    nats = tokens = 0
    for index in range(40):
        ids = base_tokenizer(document(index, "test") + "</s>", return_tensors="pt")["input_ids"]
        nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert nats / tokens == pytest.approx(card["metrics"]["loss"], rel=0.1)
