"""Judges of which answer is better, all with one interface: gold, reward model, people, LM.

A judge sees a prompt and two answers in some order, and is not told which model wrote which. It
returns P(the second is better), where 0.5 is a tie and NaN means "not judged". `judge_pairs` shows
every pair in both orders and averages, since many judges prefer one position, whatever the answer
(Zheng et al. 2023, "Judging LLM-as-a-judge"). The win rate with its intervals is
`win_rate(p, 1 - p)` of the `probability` column, after `dropna()` if people have not judged every
pair.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import chat, generation
from rlhf_helpers.annotation.agreement import agreement_table
from rlhf_helpers.evaluation.metrics import Gold
from rlhf_helpers.logprobs import Tokens, response_logprobs
from rlhf_helpers.prompts import answer_tokens, prompt_tokens
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import format_prompt, format_response

# Prompts (N,), answers shown first (N,), answers shown second (N,) -> P(second is better) (N,).
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
Question = Callable[[str, str, str], str]  # prompt, first, second -> what a language model reads


def judge_pairs(
    judge: Judge, prompts: Sequence[str], candidates_0: Sequence[str], candidates_1: Sequence[str]
) -> pd.DataFrame:
    """Let a judge compare N pairs in both orders: a row a pair.

    All columns hold P(candidate 1 is better): `as_given` with candidate 0 shown first, `swapped`
    with candidate 1 first, and `probability`, the mean of the orders that were judged. A judge that
    looks only at the position gets 0.5, a tie. Raises ValueError if a judge returns anything but
    probabilities.
    """
    as_given = _checked(judge(prompts, candidates_0, candidates_1), len(prompts))
    swapped = 1 - _checked(judge(prompts, candidates_1, candidates_0), len(prompts))
    table = pd.DataFrame({"as_given": as_given, "swapped": swapped})
    # Rounded: what a batch's arithmetic adds in the eighth place must not decide a tie.
    return table.assign(probability=table.mean(axis=1).round(6))


def _checked(probabilities: Sequence[float], count: int) -> np.ndarray:
    found = np.asarray(probabilities, dtype=float)
    if found.shape != (count,) or (found < 0).any() or (found > 1).any():
        raise ValueError(
            f"a judge must return one probability (0 to 1, NaN for none) for each of {count} "
            f"pairs, not {probabilities!r:.80}"
        )
    return found


def position_bias(verdicts: pd.DataFrame) -> dict[str, float]:
    """How much a judge depends on the order of the answers, from the table of `judge_pairs`.

    `first_rate` is how often the judge chooses the answer shown first, a tie counting half; 0.5 is
    unbiased. `consistency` is the share of the pairs judged in both orders on which the two
    verdicts agree (Zheng et al. 2023); NaN if there is no such pair.
    """
    choices = np.sign(verdicts[["as_given", "swapped"]] - 0.5)
    first = pd.concat([-choices["as_given"], choices["swapped"]]).dropna()
    both = choices.dropna()
    return {
        "first_rate": float((first.mean() + 1) / 2),
        "consistency": float((both["as_given"] == both["swapped"]).mean()),
    }


def judge_agreement(verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How often two judges give the same verdict (0, 1 or a tie) on the pairs both have judged.

    `verdicts` maps a judge's name to its table of `judge_pairs`, all of the same pairs in the same
    order. For the columns see `agreement_table`. Raises ValueError for tables of unequal length, or
    if no pair was judged by two judges.
    """
    if len({len(table) for table in verdicts.values()}) > 1:
        raise ValueError("these tables have unequal lengths: judge the same pairs, in one order")
    choices = {
        name: np.sign(table["probability"].reset_index(drop=True) - 0.5).dropna().astype(int)
        for name, table in verdicts.items()
    }
    return agreement_table({name: dict(said.items()) for name, said in choices.items()})


# ---- the judges ----------------------------------------------------------------------------


def gold_judge(gold: Gold) -> Judge:
    """The judge who knows the truth: 1 where the second answer is worth more, 0.5 for a tie."""

    def judge(
        prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
    ) -> Sequence[float]:
        gap = np.subtract(gold(prompts, seconds)["gold"], gold(prompts, firsts)["gold"])
        return ((np.sign(gap.round(9)) + 1) / 2).tolist()

    return judge


def reward_judge(reward_model: RewardModel, instruction: str = "") -> Judge:
    """A reward model: sigmoid of the gap of its raw scores (Bradley and Terry 1952)."""

    def judge(
        prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
    ) -> Sequence[float]:
        heads = [format_prompt(prompt, instruction) for prompt in prompts]
        answers = [format_response(answer) for answer in (*firsts, *seconds)]
        scores = reward_model.raw_answer_scores(heads * 2, answers)
        first, second = scores.double().reshape(2, -1)
        return (second - first).sigmoid().tolist()

    return judge


def human_judge(judgements: Sequence[Mapping]) -> Judge:
    """People, by their recorded judgements: NaN for a pair that nobody has seen in that order.

    A judgement has `input_text`, `candidate_0`, `candidate_1`, `shown_first` (0 or 1: the candidate
    that was shown first), `choice` (0, 1, or None for a tie); one with an `action` ("skip") is no
    judgement. Several judgements of one pair are averaged, so select those of one `annotator` first
    to see that person alone.
    """
    said: dict[tuple[str, ...], list[float]] = {}
    for record in judgements:
        if record.get("action"):
            continue
        order = (0, 1) if record["shown_first"] == 0 else (1, 0)
        shown = [record[f"candidate_{i}"] for i in order]
        choice = record["choice"]
        second_is_better = 0.5 if choice is None else float(order[1] == choice)
        said.setdefault(_key(record["input_text"], *shown), []).append(second_is_better)

    def judge(
        prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
    ) -> Sequence[float]:
        pairs = zip(prompts, firsts, seconds, strict=True)
        return [float(np.mean(said.get(_key(*pair), [np.nan]))) for pair in pairs]

    return judge


def _key(*texts: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)


def plain_question(prompt: str, first: str, second: str) -> str:
    """A question that a language model completes with the number of the better answer."""
    return f"{_two_answers(prompt, first, second)} The better one is answer"


def chat_question(prompt: str, first: str, second: str) -> str:
    """A question that a chat model answers with the number of the better answer."""
    return f"{_two_answers(prompt, first, second)} Reply with that number alone."


def default_question(tokenizer: PreTrainedTokenizerBase) -> Question:
    """`chat_question` for a tokenizer that uses its chat template, else `plain_question`."""
    return chat_question if chat.is_on(tokenizer) else plain_question


def _two_answers(prompt: str, first: str, second: str) -> str:
    return (
        f"Here are a request and two answers to it.\n\nRequest:\n{prompt.strip()}\n\n"
        f"Answer 1:\n{first.strip()}\n\nAnswer 2:\n{second.strip()}\n\n"
        "Which answer is better, 1 or 2?"
    )


def language_model_judge(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question | None = None,
    labels: tuple[str, str] = (" 1", " 2"),
    batch_size: int = 16,
) -> Judge:
    """Any causal language model, by its log-probs of the two labels after the question.

    P(second) = pi(label 2) / (pi(label 1) + pi(label 2)), as in RLAIF (Lee et al. 2023); labels may
    have several tokens. A chat model reads the question as a user's message. By default it is
    `chat_question` there and `plain_question` elsewhere. The average over
    both orders in `judge_pairs` is above 0.5 exactly where the log-odds averaged over both are
    above 0, so that a position bias which adds a constant to the log-odds cancels out.
    """
    policy.eval()
    question = question or default_question(tokenizer)

    def judge(
        prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
    ) -> Sequence[float]:
        asked = [question(*pair) for pair in zip(prompts, firsts, seconds, strict=True)]
        found = torch.zeros(len(asked), dtype=torch.double)
        by_length = sorted(range(len(asked)), key=lambda i: len(asked[i]))  # little is padded
        for start in range(0, len(asked), batch_size):
            places = by_length[start : start + batch_size]
            ids, mask = generation.encode_prompts(tokenizer, [asked[i] for i in places])
            answers, answer_mask = _label_ids(tokenizer, asked[places[0]], labels)
            answers, answer_mask = (x.repeat(len(places), 1) for x in (answers, answer_mask))
            tokens = Tokens(ids, mask, answers, answer_mask).to(policy.device)
            logprobs = response_logprobs(policy, tokens).sum(1).view(-1, 2)
            found[places] = logprobs.double().softmax(1)[:, 1].cpu()
        return found.tolist()

    return judge


def _completions(
    tokenizer: PreTrainedTokenizerBase, text: str, labels: tuple[str, str]
) -> list[list[int]]:
    """The tokens by which each label completes a text."""
    start, *wholes = prompt_tokens(tokenizer, [text, *(text + label for label in labels)])
    for label, whole in zip(labels, wholes, strict=True):
        if whole[: len(start)] != start or len(whole) == len(start):
            raise ValueError(
                f"the label {label!r} melts into the question's last token: end the question "
                "without a blank and begin the labels with one, or the other way round"
            )
    return [whole[len(start) :] for whole in wholes]


def _label_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, labels: tuple[str, str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (2, T) of the labels as they follow a text."""
    if chat.is_on(tokenizer):
        rows = [torch.tensor(ids) for ids in answer_tokens(tokenizer, text, labels)]
    else:
        rows = [torch.tensor(ids) for ids in _completions(tokenizer, text, labels)]
    ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=tokenizer.pad_token_id
    )
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
