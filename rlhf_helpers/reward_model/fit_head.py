"""Trains a head of answer tokens: the features are computed once, then the head reads them."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from rlhf_helpers import processes
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.models import first_not_finite, load_policy, load_tokenizer
from rlhf_helpers.models.compatibility import check_policy, check_prompt_cache
from rlhf_helpers.reward_model.answer_tokens import (
    AnswerTokenHead,
    Encoded,
    encode_answers,
    feature_batches,
    feature_size,
)
from rlhf_helpers.reward_model.kwise import (
    add_rank_scores,
    centring,
    distinct,
    ranking_metrics,
)
from rlhf_helpers.reward_model.losses import kwise_loss
from rlhf_helpers.reward_model.model import AnswerTokenRewardModel, RewardModel
from rlhf_helpers.schemas import DataError, format_prompt, format_response
from rlhf_helpers.training import interrupts, log_writer, read_some
from rlhf_helpers.training.checkpoints import load_checkpoint, save_checkpoint, start_stage
from rlhf_helpers.training.trl_stages import HELD_OUT, diverged, logging_steps

Row = dict[str, Any]  # `candidate_ids` (Encoded), `ranking`, `annotator`, `margin`, `targets`


class Comparisons(NamedTuple):
    """Rows, and the features of all their answers on the CPU: a tensor (tokens, F) an answer."""

    rows: list[Row]
    features: list[list[Tensor]]


def encode_rows(
    records: Sequence[Any], tokenizer: PreTrainedTokenizerBase, instruction: str = ""
) -> list[Row]:
    """Encode rankings, or pairs as rankings of two; what compares nothing is dropped.

    Of texts that cutting made equal the best placed one stays.
    """
    rows = []
    for record in records:
        if "candidates" in record:
            answers, ranking = record["candidates"], record["ranking"]
        else:
            answers = [record["candidate_0"], record["candidate_1"]]
            ranking = [record["choice"], 1 - record["choice"]]
        prompts = [format_prompt(record["input_text"], instruction)] * len(answers)
        encoded = encode_answers(tokenizer, prompts, list(map(format_response, answers)))
        kept, places = distinct(encoded, ranking)
        if len(places) > 1:
            row = {"candidate_ids": kept, "ranking": places}
            row |= {"annotator": record.get("annotator", ""), "margin": record.get("margin", 0.0)}
            rows.append(row)
    return rows


class HeadTraining:
    """The state of a training run: head, optimiser, schedule, and what was logged."""

    def __init__(self, config: RewardConfig, reward_model: AnswerTokenRewardModel, rows: int):
        self.config, self.head = config, reward_model.head
        self.device = reward_model.model.device
        self.batches = batches_of(rows, config)
        self.optimizer = AdamW(
            self.head.layers.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = get_scheduler(
            config.lr_scheduler_type, self.optimizer, config.warmup_steps, len(self.batches)
        )
        self.step, self.last_loss = 0, math.nan  # steps that are done
        self.history: list[dict[str, float]] = []
        self.numbers: dict[str, list[float]] = defaultdict(list)  # since the last log

    def loss(self, data: Comparisons, numbers: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """The loss of some rankings, and what is logged of them."""
        rows = [data.rows[i] for i in numbers]
        features = [answer for i in numbers for answer in data.features[i]]
        lengths = [len(answer) for answer in features]
        scores = self.head(torch.cat(features).to(self.device), lengths)
        rankings = [row["ranking"] for row in rows]
        metrics = ranking_metrics(scores, rankings)
        if self.config.objective == "scores":
            targets = [score for row in rows for score in row["targets"]]
            loss = mse_loss(scores, torch.tensor(targets, device=self.device))
        else:
            split = scores.split([len(row["candidate_ids"]) for row in rows])
            margins: Tensor | float = 0.0
            if any(row["margin"] for row in rows):  # pairs, of which each row has one
                margins = torch.tensor([row["margin"] for row in rows], device=self.device)
            loss = kwise_loss(split, rankings, self.config.label_smoothing, margins)
            loss = loss + self.config.center_rewards_coefficient * centring(scores, rankings)
        return loss, metrics | {"loss": loss.item()}

    def learn(self, data: Comparisons) -> None:
        """Do one step. Raises FloatingPointError where the loss is not a finite number."""
        loss, metrics = self.loss(data, self.batches[self.step])
        self.step, self.last_loss = self.step + 1, loss.item()
        self.check(loss.item(), "loss")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for name, value in metrics.items():
            self.numbers[name].append(value)
        if self.step % logging_steps(self.config) == 0 or self.step in (1, len(self.batches)):
            row = {name: sum(values) / len(values) for name, values in self.numbers.items()}
            row["learning_rate"] = self.schedule.get_last_lr()[0]
            self.log(row)
            self.numbers.clear()
        self.schedule.step()

    @torch.no_grad()
    def evaluate(self, data: Comparisons) -> None:
        """Log the loss on held-out data."""
        loss, metrics = self.loss(data, range(len(data.rows)))
        self.check(loss.item(), "eval_loss")
        self.log({f"eval_{name}": value for name, value in metrics.items()})

    def log(self, row: dict[str, float]) -> None:
        """Append a row to the history."""
        epoch = self.step * self.config.epochs / len(self.batches)
        self.history.append({**row, "epoch": epoch, "step": self.step})

    def check(self, loss: float, name: str) -> None:
        """Raise FloatingPointError where a loss, or a weight of the head, is not finite."""
        weight = first_not_finite(self.head)
        if math.isfinite(loss) and weight is None:
            return
        found = f"the weight {weight} is not a finite number" if weight else f"{name} is {loss}"
        raise diverged(self.config, found, self.step, len(self.batches))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "history": self.history,
            "numbers": dict(self.numbers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.history = state["step"], state["history"]
        self.numbers = defaultdict(list, state["numbers"])


def batches_of(rows: int, config: RewardConfig) -> list[list[int]]:
    """The numbers of the rankings of each step: the rows in a new order in every epoch."""
    generator = torch.Generator().manual_seed(config.seed)
    steps = max(1, round(config.epochs * math.ceil(rows / config.batch_size)))
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = torch.randperm(rows, generator=generator)
        batches += [batch.tolist() for batch in order.split(config.batch_size)]
    return batches[:steps]


class Fitted(NamedTuple):
    """What training leaves for `run`: the reward model, and what there is to report."""

    reward_model: RewardModel
    counts: dict[str, int]
    history: list[dict[str, Any]]
    seconds: float
    weights: dict[str, Tensor] | None = None  # of a model that is spread over the processes


def fit_head(config: RewardConfig, records: list | None, resume: bool) -> Fitted:
    """Train a head of answer tokens on pairs or rankings; None reads them from a stream.

    Under a launcher every process does all the work. Raises ValueError for a language model whose
    answers cannot share their prompt, and FloatingPointError where training diverges.
    """
    check_policy(config.model)
    tokenizer = load_tokenizer(config.model, config.chat, config.system_prompt)
    tokenizer.model_max_length = min(config.max_length, tokenizer.model_max_length)
    records = _streamed(config) if records is None else records
    rows = encode_rows(records, tokenizer, config.instruction)
    counts = count_rows(config, records, rows)
    model = load_policy(config.model)
    check_prompt_cache(model, tokenizer)
    checkpoint = start_stage(config, resume)
    started = time.perf_counter()
    compare = partial(_comparisons, config, model, tokenizer)
    data, held_out = compare(rows), None
    if config.eval_data is not None:
        found = read_some(config.eval_data, "preferences", HELD_OUT)
        held_out = compare(encode_rows(found, tokenizer, config.instruction))
    torch.manual_seed(config.seed)  # the head's first weights
    head = AnswerTokenHead(feature_size(model))
    head.standardise(answer for row in data.features for answer in row)
    reward_model = AnswerTokenRewardModel(model, tokenizer, head)
    training = HeadTraining(config, reward_model, len(rows))
    if checkpoint is not None:
        training.load_state_dict(load_checkpoint(checkpoint, model.device))
    _run(training, data, held_out, resumed=checkpoint is not None)
    return Fitted(reward_model, counts, training.history, time.perf_counter() - started)


def _streamed(config: RewardConfig) -> list:
    """The first `pairs` records of a stream, whose features are all kept."""
    if config.pairs is None:
        raise ValueError(
            f"{config.data}: the head answer_tokens keeps the features of all records, so a stream "
            "needs a limit. Set pairs."
        )
    return read_some(config.data, "preferences", config.pairs)


def count_rows(config: RewardConfig, records: list, rows: list[dict]) -> dict[str, int]:
    """How many pairs or rankings there are, and how many were dropped.

    Raises DataError where none are left.
    """
    what = "ranking" if "candidates" in records[0] else "pair"
    if not rows:
        raise DataError(
            f"{config.data}: every {what} is equal after cutting to {config.max_length} tokens. "
            "Raise --max-length."
        )
    return {f"{what}s": len(rows), f"dropped_{what}s": len(records) - len(rows)}


def _comparisons(
    config: RewardConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
) -> Comparisons:
    """Compute the features of all answers, each prompt read once."""
    if config.objective == "scores":
        add_rank_scores(rows)
    encoded: list[Encoded] = [answer for row in rows for answer in row["candidate_ids"]]
    features: list[Tensor] = [torch.empty(0)] * len(encoded)
    hidden = processes.rank() > 0
    with tqdm(total=len(encoded), desc="features", leave=False, disable=hidden, delay=5) as bar:
        for numbers, found, lengths in feature_batches(model, tokenizer, encoded):
            for number, answer in zip(numbers, found.cpu().split(lengths), strict=True):
                features[number] = answer
            bar.update(len(numbers))
    answers = iter(features)
    return Comparisons(rows, [[next(answers) for _ in row["candidate_ids"]] for row in rows])


def _run(
    training: HeadTraining, data: Comparisons, held_out: Comparisons | None, resumed: bool
) -> None:
    """Do the remaining steps, with logs and checkpoints in the stage's folder."""
    config, steps, logged = training.config, len(training.batches), len(training.history)
    hidden = processes.rank() > 0
    with (
        log_writer(config, training.step + 1 if resumed else None) as writer,
        tqdm(total=steps, initial=training.step, disable=hidden) as bar,
    ):
        while training.step < steps:
            training.learn(data)
            due = training.step % config.save_steps == 0
            if held_out is not None and (due or training.step == steps):
                training.evaluate(held_out)
            for row in training.history[logged:]:
                _write(writer, row)
            logged = len(training.history)
            bar.update()
            bar.set_postfix(loss=f"{training.last_loss:.3f}")
            if (due or interrupts.is_asked_to_stop()) and training.step < steps:
                if processes.rank() == 0:
                    save_checkpoint(config.output_dir, training.step, training.state_dict())
                interrupts.stop_if_asked()


def _write(writer: SummaryWriter | None, row: dict[str, float]) -> None:
    """Write a row of the history to TensorBoard, under the names that the other stages use."""
    if writer is not None:
        for name, value in row.items():
            part = "eval" if name.startswith("eval_") else "train"
            writer.add_scalar(f"{part}/{name.removeprefix('eval_')}", value, row["step"])
