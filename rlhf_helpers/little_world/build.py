"""Writes the data sets of the little world, `data/` in the repository.

Demonstrations, prompts and pretraining documents depend on the grammar alone: one seed gives the
same files bit for bit. Preferences and rankings also hold samples of the SFT model, so they are the
same only on the same kind of machine with the same versions. Judgements follow from preferences.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rlhf_helpers import generation
from rlhf_helpers.little_world import base_model, completions, writers
from rlhf_helpers.little_world.annotators import ANNOTATORS, choose, judge, measure, rank
from rlhf_helpers.little_world.grammar import Facts, as_input_text, draw_posts
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.schemas import format_prompt, write_jsonl

SEED = 0
# Where the candidates of a comparison come from: samples of the SFT model; summaries that differ
# only in whether facts are right; true summaries that differ in what they tell; the writers' mix.
SOURCES = {"sampled": 0.25, "truth": 0.25, "choice": 0.25, "written": 0.25}
MAX_NEW_TOKENS = 48
POSTS_AT_ONCE = 128  # whose candidates are drawn together
DEMONSTRATIONS = {"train": 3000, "validation": 256, "test": 256}
PROMPTS = {"train": 2000, "validation": 256, "test": 512}
DOCUMENTS = {"train": 1000, "test": 250}
PREFERENCES = {"train": 2400, "validation": 300, "test": 2000}
RANKINGS = {"train": 2000, "test": 200}
BY_ALL_ANNOTATORS = 250  # training pairs that every annotator labels
JUDGED = 30  # test pairs that Cleo judges

Draw = Callable[[random.Random, str], Iterator[tuple[Facts, str]]]
Sizes = dict[str, int]  # split -> records


def _rng(name: str, split: str) -> random.Random:
    return random.Random(f"{SEED}/{name}/{split}")


def _write(facts: Facts, post: str, rng: random.Random) -> str:
    if facts.question:
        return writers.write_summary(facts, post, rng)
    return completions.write_completion(facts, post, rng)


def demonstrations(split: str, draw: Draw = draw_posts) -> Iterator[dict]:
    """Yield posts with summaries, or beginnings with completions, of mixed quality."""
    rng = _rng("demonstrations", split)
    for facts, post in draw(rng, split):
        yield {"input_text": as_input_text(post), "output_text": _write(facts, post, rng)}


def prompts(split: str, draw: Draw = draw_posts) -> Iterator[dict]:
    """Yield posts without summaries, or beginnings without completions."""
    for _, post in draw(_rng("prompts", split), split):
        yield {"input_text": as_input_text(post)}


def documents(split: str) -> Iterator[dict]:
    """Yield the documents on which the base model is pretrained, in its order."""
    index = 0
    while True:
        yield {"text": base_model.document(index, split)}
        index += 1


GRAMMAR_FILES = {
    "demonstrations": (demonstrations, DEMONSTRATIONS),
    "prompts": (prompts, PROMPTS),
    "pretraining": (documents, DOCUMENTS),
}


def write_grammar_files(folder: Path, files: dict[str, tuple] | None = None) -> None:
    """Write the files that depend on the grammar alone; by default those of summarisation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (records, sizes) in (files or GRAMMAR_FILES).items():
        for split, size in sizes.items():
            write_jsonl(folder / f"{name}_{split}.jsonl", islice(records(split), size))


def write_sampled_files(folder: Path, sft_model: Path) -> None:
    """Write preferences and rankings; some candidates are the SFT model's, some the writers'."""
    write_labelled(folder, sft_model, PREFERENCES, RANKINGS, BY_ALL_ANNOTATORS)


def write_labelled(
    folder: Path, sft_model: Path, preferences: Sizes, rankings: Sizes, by_all: int, **draw: Any
) -> None:
    """Write preferences and rankings of these sizes.

    `draw` yields what the candidates answer: whole posts (the default) or beginnings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in preferences.items():
        candidates = _candidates("preferences", split, 2, sft_model, **draw)
        records = list(_progress(_preferences(candidates, split), size, f"preferences {split}"))
        write_jsonl(folder / f"preferences_{split}.jsonl", (record for record, _ in records))
        if split == "train":
            write_jsonl(folder / "preferences_by_annotator.jsonl", _by_annotator(records[:by_all]))
        if split == "test":
            write_judgements(folder, [record for record, _ in records])
    for split, size in rankings.items():
        candidates = _candidates("rankings", split, 4, sft_model, **draw)
        ranked = _progress(_rankings(candidates, split), size, f"rankings {split}")
        write_jsonl(folder / f"rankings_{split}.jsonl", ranked)


def write_judgements(folder: Path, test_pairs: list) -> None:
    """Write how Cleo, by her utility, would judge the first test pairs."""
    judged = judge(test_pairs[:JUDGED], ANNOTATORS[2], _rng("judgements", "test"))
    write_jsonl(folder / "judgements.jsonl", judged)


def _progress(records: Iterable, size: int, what: str) -> Iterable:
    return tqdm(islice(records, size), total=size, desc=what)


def _candidates(
    name: str, split: str, count: int, sft_model: Path, draw: Draw = draw_posts
) -> Iterator[tuple[Facts, str, list[str]]]:
    """Yield (facts, post, `count` different candidates), all from one of SOURCES."""
    policy, tokenizer, rng = load_policy(sft_model), load_tokenizer(sft_model), _rng(name, split)
    posts = draw(rng, split)
    generator = generation.seeded(policy, rng.randrange(2**31))
    while True:
        drawn = list(islice(posts, POSTS_AT_ONCE))
        sources = rng.choices(list(SOURCES), list(SOURCES.values()), k=POSTS_AT_ONCE)
        asked = [
            post for (_, post), source in zip(drawn, sources, strict=True) if source == "sampled"
        ]
        samples = generation.sample(
            policy,
            tokenizer,
            *generation.encode_prompts(tokenizer, [format_prompt(as_input_text(p)) for p in asked]),
            max_new_tokens=MAX_NEW_TOKENS,
            samples_per_prompt=2 * count,
            generator=generator,
        )
        responses = iter(text.strip() for text in generation.decode(tokenizer, samples))
        for (facts, post), source in zip(drawn, sources, strict=True):
            if source == "sampled":
                pool = list(islice(responses, 2 * count))
            else:
                pool = _written(source, facts, post, rng, count)
            different = [text for text in dict.fromkeys(pool) if text]
            if len(different) >= count:
                yield facts, post, different[:count]


def _written(source: str, facts: Facts, post: str, rng: random.Random, count: int) -> list[str]:
    """Write candidates for a post, or for a beginning, which leaves no choice of facts."""
    if source == "truth":
        if facts.question:
            return writers.differ_in_truth(facts, rng, count)
        return completions.differ_in_truth(facts, post, rng, count)
    if source == "choice" and facts.question:
        return writers.differ_in_choice(facts, rng, count)
    return [_write(facts, post, rng) for _ in range(2 * count)]


def _preferences(
    candidates: Iterable[tuple[Facts, str, list[str]]], split: str
) -> Iterator[tuple[dict, list[dict]]]:
    """Yield each pair with one annotator's noisy choice, and the counts for both candidates."""
    rng = _rng("choices", split)
    for facts, post, pair in candidates:
        measured = [measure(facts, text, post) for text in pair]
        annotator = rng.choice(ANNOTATORS)
        utilities = (annotator.utility(measured[0]), annotator.utility(measured[1]))
        record = {
            "input_text": as_input_text(post),
            "candidate_0": pair[0],
            "candidate_1": pair[1],
            "choice": choose(utilities, rng),
            "annotator": annotator.name,
        }
        yield record, measured


def _by_annotator(records: list[tuple[dict, list[dict]]]) -> Iterator[dict]:
    """Yield every pair three times, once labelled by each annotator."""
    rng = _rng("choices", "by_annotator")
    for record, measured in records:
        for annotator in ANNOTATORS:
            choice = record["choice"]
            if annotator.name != record["annotator"]:
                utilities = (annotator.utility(measured[0]), annotator.utility(measured[1]))
                choice = choose(utilities, rng)
            yield {**record, "choice": choice, "annotator": annotator.name}


def _rankings(candidates: Iterable[tuple[Facts, str, list[str]]], split: str) -> Iterator[dict]:
    """Yield each set of candidates with the ranking of one annotator."""
    rng = _rng("orders", split)
    for _, post, texts in candidates:
        annotator, input_text = rng.choice(ANNOTATORS), as_input_text(post)
        yield {
            "input_text": input_text,
            "candidates": texts,
            "ranking": rank(input_text, texts, annotator, rng),
            "annotator": annotator.name,
        }
