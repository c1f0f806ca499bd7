"""The principles of the constitution as rules over texts, and a labeller trained on these rules.

For each principle of `data/constitution.txt` a rule counts how often a summary breaks it, given the
facts of the post. Of two summaries, the better one is favoured by more principles. The labeller of
`tiny` learns from these rules alone: not from the annotators, their weights or their labels.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from rlhf_helpers.little_world import phrases
from rlhf_helpers.little_world.grammar import SLOTS, Facts, draw_posts, find_facts, find_post
from rlhf_helpers.little_world.writers import write_summary
from rlhf_helpers.models import add_lora, load_policy, load_tokenizer
from rlhf_helpers.runs import data_dir, write_json

SEED = 0
PAIRS = 2000  # each is shown in both orders
SINGLE_QUESTIONS = 6  # about one principle each; one more question is about all of them
RANK = 16  # of the adapter
LEARNING_RATE = 3e-3
LONGEST = 12  # a brief summary has at most so many words
MIX = {  # kind of summary -> probability
    "stock": 0.2,
    "short": 0.2,
    "missing": 0.15,
    "full": 0.1,
    "wrong": 0.15,
    "rambling": 0.1,
    "off_topic": 0.03,
    "copied": 0.07,
}

# ---- the rules -----------------------------------------------------------------------------

Rule = Callable[[Facts, str], int]  # the post's facts, a summary -> how often it breaks the rule


def _leaves_out(slot: str) -> Rule:
    return lambda facts, text: int(getattr(facts, slot) not in find_facts(text)[slot])


def _beside_the_point(facts: Facts, text: str) -> int:
    return _leaves_out(facts.point)(facts, text)


def _made_up(facts: Facts, text: str) -> int:
    found = find_facts(text)
    return sum(len(found[slot] - {getattr(facts, slot)}) for slot in SLOTS)


def _words_too_many(facts: Facts, text: str) -> int:
    return max(0, len(text.split()) - LONGEST)


def _ramblings(facts: Facts, text: str) -> int:
    """Count empty phrases and repeated sequences of three words."""
    lowered = text.lower()
    words = lowered.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    stock = [*phrases.RAMBLINGS, *(filler.lower() for filler in phrases.FILLERS)]
    return sum(phrase in lowered for phrase in stock) + len(triples) - len(set(triples))


def _unfinished(facts: Facts, text: str) -> int:
    return int(text.rstrip()[-1:] not in (".", "?", "!"))


RULES: dict[str, Rule] = {
    "Name who it is about.": _leaves_out("relation"),
    "Name the problem.": _leaves_out("problem"),
    "Come to the point.": _beside_the_point,
    "Do not make things up.": _made_up,
    "Be brief.": _words_too_many,
    "Do not ramble.": _ramblings,
    "Finish the sentence.": _unfinished,
}


def verdicts(facts: Facts, first: str, second: str) -> dict[str, int]:
    """Return, for each principle, 1 if the second summary follows it better, -1 if the first does.

    0 means that both follow it equally well.
    """
    return {
        principle: int(np.sign(rule(facts, first) - rule(facts, second)))
        for principle, rule in RULES.items()
    }


def majority(said: Mapping[str, int]) -> int:
    """Return 1 if more principles favour the second summary, -1 if the first, 0 if neither."""
    return int(np.sign(sum(said.values())))


# ---- what the labeller is asked, and is taught ---------------------------------------------


def comparison(post: str, first: str, second: str) -> str:
    """Return what the labeller reads before a question, with marks that its base model knows."""
    return f"[post]: {post} [1]: {first.strip()} [2]: {second.strip()}"


def question_about(principles: Sequence[str]) -> str:
    """Return the question that follows a `comparison`; the answer is " 1" or " 2"."""
    return f" [principle]: {' '.join(principles)} [better]:"


def little_question(principles: Sequence[str]) -> Callable[[str, str, str], str]:
    """Return the question about these principles for `annotation.judges.language_model_judge`.

    It names all principles at once. One question costs a seventh of seven questions.
    """
    asked = question_about(principles)
    return lambda prompt, first, second: comparison(find_post(prompt), first, second) + asked


def lessons(rng: random.Random) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield comparisons without end, each with questions and their right answers.

    The grammar's writers make the summaries, for posts of the training split; some break off or
    repeat some words. Every pair comes in both orders, so that no position is the better one. One
    question is about all principles, because a labeller at work gets only this one. It comes first
    in half of the cases, else at a random place among the others.
    """
    for facts, post in draw_posts(rng, "train"):
        pair = [_damaged(write_summary(facts, post, rng, MIX), rng) for _ in range(2)]
        said = verdicts(facts, *pair)
        if not majority(said):
            continue
        single = [principle for principle, which in said.items() if which]
        single = rng.sample(single, min(len(single), SINGLE_QUESTIONS))
        for order, texts in ((1, pair), (-1, pair[::-1])):
            asked = [([p], said[p]) for p in rng.sample(single, len(single))]
            place = 0 if rng.random() < 0.5 else rng.randint(0, len(asked))
            asked.insert(place, (list(RULES), majority(said)))
            answers = [(question_about(p), " 2" if order * w > 0 else " 1") for p, w in asked]
            yield comparison(post, *texts), answers


def _damaged(text: str, rng: random.Random) -> str:
    """Break the text off with probability 0.12, or repeat some words with probability 0.08."""
    words, draw = text.split(), rng.random()
    if draw < 0.12:
        return " ".join(words[: rng.randint(1, max(1, len(words) - 1))])
    if draw < 0.20:
        start = rng.randrange(len(words))
        return " ".join(words[: start + rng.randint(3, 8)] + words[start:])
    return text


def encode_lesson(
    text: str, answers: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """Return `input_ids`, and `labels` that are -100 everywhere except on the answers."""
    ids = tokenizer(text)["input_ids"]
    labels = [-100] * len(ids)
    for question, answer in answers:
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids, labels = ids + asked + said, labels + [-100] * len(asked) + said
    return {"input_ids": ids, "labels": labels, "length": len(ids)}


def train_labeller(output_dir: Path, work_dir: Path, pairs: int = PAIRS) -> dict[str, float]:
    """Train a LoRA adapter of the base model on the principles, and save it (half precision).

    Checkpoints go to `work_dir`; a second call continues from the last one. Returns the loss of
    the last steps, in nats per answer.
    """
    base = data_dir() / "base_model"
    tokenizer, stream = load_tokenizer(base), lessons(random.Random(SEED))
    torch.manual_seed(SEED)
    model = add_lora(load_policy(base), RANK)
    rows = [encode_lesson(*next(stream), tokenizer) for _ in range(2 * pairs)]
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        num_train_epochs=1,
        per_device_train_batch_size=16,
        train_sampling_strategy="group_by_length",
        learning_rate=LEARNING_RATE,
        warmup_steps=20,
        weight_decay=0.01,
        adam_beta2=0.98,
        logging_steps=25,
        logging_first_step=True,
        save_steps=100,
        save_total_limit=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        seed=SEED,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)  # pads the labels too
    trainer = Trainer(model, arguments, collator, train_dataset=Dataset.from_list(rows))
    trainer.train(resume_from_checkpoint=any(work_dir.glob("checkpoint-*")))
    history = [row for row in trainer.state.log_history if "loss" in row]
    metrics = {"loss": history[-1]["loss"], "pairs": pairs}
    model.peft_config["default"].base_model_name_or_path = "data/base_model"
    model.half().save_pretrained(work_dir / "adapter")  # peft would write over our model card
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(work_dir / "adapter" / name, output_dir / name)
    write_json(output_dir / "metrics.json", {"metrics": metrics, "history": history})
    return metrics
