"""The principles of the constitution as rules over texts, and a labeller taught by them alone.

Each principle of `data/constitution.txt` is a rule that counts how often a summary breaks it, given
the facts of the post; of two summaries the one that more principles favour is the better. That is
all the labeller of `tiny` ever learns from: no annotator, no weight of theirs, no label has a say.
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
SINGLE_QUESTIONS = 6  # about one principle each; a further one is about all of them
RANK = 32  # of the adapter
LEARNING_RATE = 3e-3
LONGEST = 25  # words of a brief summary
MIX = {
    "good": 0.15, "short": 0.2, "missing": 0.2, "wrong": 0.2, "rambling": 0.15,
    "off_topic": 0.03, "copied": 0.07,
}  # fmt: skip

# ---- the rules -----------------------------------------------------------------------------

Rule = Callable[[Facts, str], int]  # the post's facts, a summary -> how often it breaks the rule


def _leaves_out(slot: str) -> Rule:
    return lambda facts, text: int(getattr(facts, slot) not in find_facts(text)[slot])


def _made_up(facts: Facts, text: str) -> int:
    found = find_facts(text)
    return sum(len(found[slot] - {getattr(facts, slot)}) for slot in SLOTS)


def _words_too_many(facts: Facts, text: str) -> int:
    return max(0, len(text.split()) - LONGEST)


def _ramblings(facts: Facts, text: str) -> int:
    """Stock phrases, and three words in a row that stood there before."""
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
    "Say how long it has gone on.": _leaves_out("duration"),
    "Say what was tried.": _leaves_out("tried"),
    "Keep the question.": _leaves_out("question"),
    "Do not make things up.": _made_up,
    "Be brief.": _words_too_many,
    "Do not ramble.": _ramblings,
    "Finish the sentence.": _unfinished,
}


def verdicts(facts: Facts, first: str, second: str) -> dict[str, int]:
    """Principle -> 1 where the second summary follows it better, -1 the first, 0 neither."""
    return {
        principle: int(np.sign(rule(facts, first) - rule(facts, second)))
        for principle, rule in RULES.items()
    }


def majority(said: Mapping[str, int]) -> int:
    """What more principles favour: 1 the second summary, -1 the first, 0 neither."""
    return int(np.sign(sum(said.values())))


# ---- what the labeller is asked, and is taught ---------------------------------------------


def comparison(post: str, first: str, second: str) -> str:
    """What the labeller of `tiny` reads before it is asked, in marks its base model knows."""
    return f"[post]: {post} [1]: {first.strip()} [2]: {second.strip()}"


def question_about(principles: Sequence[str]) -> str:
    """How it is asked, after a `comparison`; " 1" or " 2" is the answer."""
    return f" [principle]: {' '.join(principles)} [better]:"


def little_question(principles: Sequence[str]) -> Callable[[str, str, str], str]:
    """The question of these principles as `annotation.judges.language_model_judge` takes it.

    All at once: that costs a ninth of asking about nine one by one, and the list takes 57 of the
    512 tokens of context, a post and two summaries about 120.
    """
    asked = question_about(principles)
    return lambda prompt, first, second: comparison(find_post(prompt), first, second) + asked


def lessons(rng: random.Random) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """An endless stream of comparisons, each with questions and their right answers.

    The summaries are by the grammar's writers, about posts of the training split; some break off
    or say a part twice. Every pair comes in both orders, so that no place is the better one. A
    question about all principles stands among those about one, first in half of the cases: a
    labeller at work is asked nothing else.
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
    """Now and then broken off, or with some words twice."""
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
    """`input_ids`, and `labels` that are -100 but on the answers."""
    ids = tokenizer(text)["input_ids"]
    labels = [-100] * len(ids)
    for question, answer in answers:
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids, labels = ids + asked + said, labels + [-100] * len(asked) + said
    return {"input_ids": ids, "labels": labels, "length": len(ids)}


def train_labeller(output_dir: Path, work_dir: Path, pairs: int = PAIRS) -> dict[str, float]:
    """Teach the base model the principles by a LoRA adapter; save that (half precision).

    Checkpoints and the unfinished adapter go to `work_dir`; a second call continues from the last
    checkpoint. Returns the loss of the last steps, in nats an answer.
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
        learning_rate=LEARNING_RATE,
        warmup_steps=20,
        weight_decay=0.01,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
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
