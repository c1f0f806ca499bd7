"""Rewards with a name and a weight, which are called and checked alike, and their sum."""

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_helpers import processes
from rlhf_helpers.schemas import Scorer, score_answers

if TYPE_CHECKING:
    from rlhf_helpers.ppo import Rollout

REWARD_MODEL = "reward_model"  # the name of its scores among those of the functions


@dataclass(frozen=True)
class Reward:
    """A function that scores answers, with a name for logs and errors, and a weight in a sum.

    A function of one argument takes all texts at once, each a prompt with its answer, and returns
    a list of as many numbers. One of three arguments takes the prompt, the answer and the prompt's
    record, and returns a number; the record is the line of the data file, with all of its fields.

        def brevity(texts): return [-len(text) for text in texts]
        def correct(prompt, response, record): return response == record["answer"]

    True and False count as 1 and 0. Raises ValueError for a function of another number of
    arguments.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.arguments not in (1, 3):
            raise ValueError(
                f"reward {self.name!r} takes {self.arguments} arguments: let it take one (texts), "
                "or three (prompt, response, record)"
            )

    @property
    def arguments(self) -> int:
        """The number of positional arguments that have no default."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.function).parameters.values()
        return sum(p.kind in positional and p.default is p.empty for p in parameters)

    def __call__(
        self,
        texts: Sequence[str],
        prompts: Sequence[str],
        responses: Sequence[str],
        records: Sequence[Mapping[str, Any]],
    ) -> list[float]:
        """Return the score of each answer, without the weight.

        Raises ValueError, which names the reward, where the function fails or returns anything but
        finite numbers, one an answer.
        """
        if self.arguments == 1:
            found = self._call(f"{len(texts)} texts", list(texts))
            if not isinstance(found, list | tuple | np.ndarray):
                raise ValueError(
                    f"reward {self.name!r} returned a {type(found).__name__}: let it return a list "
                    f"of {len(texts)} numbers (`scores.tolist()` of a tensor)"
                )
            if len(found) != len(texts):
                raise ValueError(
                    f"reward {self.name!r} returned {len(found)} scores for {len(texts)} texts"
                )
        else:
            answers = zip(prompts, responses, records, strict=True)
            found = [self._call(f"the answer {answer[1]!r}", *answer) for answer in answers]
        return [self._number(score, text) for score, text in zip(found, texts, strict=True)]

    def _call(self, what: str, *arguments: Any) -> Any:
        """Call the function; any error of it becomes a ValueError that says where it arose."""
        try:
            return self.function(*arguments)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"reward {self.name!r} failed on {what}: {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error

    def _number(self, score: Any, text: str) -> float:
        """The score as a float; ValueError unless it is a finite number."""
        is_number = isinstance(score, Real | np.bool_)
        if is_number and math.isfinite(score):
            return float(score)
        kind = "" if is_number else f"the {type(score).__name__} "
        raise ValueError(
            f"reward {self.name!r} gave {kind}{score!r} for {text!r}: let it give a finite number"
        )


class Rewards:
    """The weighted sum of a reward model's score and those of some functions."""

    def __init__(
        self,
        reward_model: Scorer | None = None,
        functions: Sequence[Reward] = (),
        weight: float = 1.0,
    ):
        """Sum the `functions` and, with this `weight`, the reward model.

        Raises ValueError where there is nothing to sum, or where two have the same name.
        """
        self.reward_model, self.functions, self.weight = reward_model, list(functions), weight
        names = [reward.name for reward in functions]
        if reward_model is None and not names:
            raise ValueError("no reward is left: name a reward model or a reward function")
        for name in names:
            if name == REWARD_MODEL or names.count(name) > 1:
                raise ValueError(f"two rewards are called {name!r}: give one another name")

    def __call__(self, rollout: "Rollout") -> tuple[list[float], dict[str, float]]:
        """Return the sum for each response (B,), and what each reward gave on average.

        The averages are without weights, over the responses of all processes, under `reward/NAME`.
        """
        scores = [0.0] * len(rollout.texts)
        means = {}
        for name, weight, given in self._given(rollout):
            scores = [total + weight * score for total, score in zip(scores, given, strict=True)]
            means[f"reward/{name}"] = fmean(processes.gather(fmean(given)))
        return scores, means

    def _given(self, rollout: "Rollout") -> list[tuple[str, float, list[float]]]:
        """The name, the weight and the scores (B,) of each reward."""
        given = []
        if self.reward_model is not None:
            scores = list(score_answers(self.reward_model, rollout.prompts, rollout.answers))
            given.append((REWARD_MODEL, self.weight, scores))
        what = (rollout.texts, rollout.prompts, rollout.responses, rollout.records)
        for reward in self.functions:
            given.append((reward.name, reward.weight, reward(*what)))
        return given
