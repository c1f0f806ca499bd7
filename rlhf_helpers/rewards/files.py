"""Reward functions from a user's own file, named on the command line as `file.py:function`."""

import importlib.util
import logging
import math
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from rlhf_helpers.rewards.functions import Reward

logger = logging.getLogger(__name__)


class RewardName(NamedTuple):
    """The parts of `file.py:function=weight`."""

    path: Path
    function: str
    weight: float


def parse_reward(text: str) -> RewardName:
    """Split `file.py:function` or `file.py:function=weight`; the weight is 1 where none is given.

    A negative weight makes the function a price; 0 logs it without an effect. Raises ValueError
    for any other text, and FileNotFoundError for a file that does not exist.
    """
    match = re.fullmatch(r"(.+\.py):(\w+)(?:=(\S+))?", text)
    if match is None:
        raise ValueError(f"reward function {text!r}: write file.py:function, or with a weight =0.5")
    path, function, weight = match.groups()
    if not Path(path).is_file():
        raise FileNotFoundError(f"reward function {text!r}: there is no file {path}")
    try:
        number = float(weight or 1)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"reward function {text!r}: the weight {weight!r} is not a finite number")
    return RewardName(Path(path), function, number)


def load_rewards(names: Sequence[str]) -> list[Reward]:
    """Load functions named as in `parse_reward`; each file is run once, which is said in a line.

    Raises ValueError where a file cannot be run or has no such function.
    """
    files: dict[Path, ModuleType] = {}
    rewards = []
    for path, function, weight in map(parse_reward, names):
        if path not in files:
            files[path] = _run(path)
        found = getattr(files[path], function, None)
        if not callable(found):
            own = [n for n, v in vars(files[path]).items() if _module(v) == files[path].__name__]
            raise ValueError(
                f"{path} has no function {function!r}; it has {', '.join(own) or 'none'}"
            )
        rewards.append(Reward(function, found, weight))
    return rewards


def _run(path: Path) -> ModuleType:
    """Run a file as a module; any error of it becomes a ValueError that names file and line."""
    logger.warning("%s: this file is run, since it has reward functions", path.resolve())
    spec = importlib.util.spec_from_file_location(f"rewards_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # as for every name that ends with .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({frame.filename}, line {frame.lineno})"
        if isinstance(error, SyntaxError):
            where = ""  # it names its line itself
        raise ValueError(f"{path} failed: {type(error).__name__}: {error}{where}") from error
    return module


def _module(value: object) -> str | None:
    """The module that defines a function; None for other values."""
    return getattr(value, "__module__", None) if callable(value) else None
