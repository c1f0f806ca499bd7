"""Settings that describe and check themselves.

A field of a config is written once, with its default, its meaning and its limits:

    beta: float = setting(1.0, "price of a nat of KL from the SFT model", above=0)

The command line takes its options from these fields, and every bad value gives the same kind of
error: `beta is -1.0: it must be a number above 0`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

KEY = "setting"  # under which a field's metadata hold its Setting


@dataclass(frozen=True)
class Setting:
    """What a field means, and which values it takes."""

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple = ()

    def allows(self, value: Any, kind: type) -> bool:
        """Whether a value is of this kind (int, float, bool, str or Path) and within the limits."""
        if self.choices:
            return value in self.choices and not isinstance(value, bool)
        if kind in (str, Path):
            return isinstance(value, str | Path)
        if kind not in (int, float):
            return isinstance(value, kind)
        if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
            return False
        number = float(value)
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def wanted(self, kind: type) -> str:
        """What a value of this kind must be, e.g. `a number from 0 to below 0.5`."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if kind not in (int, float):
            others = {bool: "True or False", str: "a text", Path: "a path"}
            return others.get(kind, f"a {kind.__name__}")
        number = "a whole number" if kind is int else "a number"
        if self.above is not None:
            return f"{number} above {self.above:g}"
        if self.at_least is None:
            return number
        if self.below is not None:
            return f"{number} from {self.at_least:g} to below {self.below:g}"
        if self.at_most is not None:
            return f"{number} from {self.at_least:g} to {self.at_most:.10g}"
        return f"{number} of at least {self.at_least:g}"


@dataclass(frozen=True)
class Option:
    """A field as the command line and the docs need it."""

    name: str
    kind: type  # int, float, bool, str or Path; a config, where a stage contains another one
    optional: bool  # whether None is a value
    repeated: bool  # whether the values are tuples of this kind
    default: Any  # dataclasses.MISSING where there is none
    setting: Setting


def setting(default: Any = dataclasses.MISSING, help: str = "", **limits: Any) -> Any:
    """A field of a config: its default, what it means, and the limits that `Setting` names."""
    return dataclasses.field(default=default, metadata={KEY: Setting(help, **limits)})


def options(config: type | Any) -> list[Option]:
    """The fields of a config, or of its class, in order.

    A subclass that changes a default alone (`save_steps: int = 100`) keeps meaning and limits.
    """
    owner = config if isinstance(config, type) else type(config)
    found = []
    for field in dataclasses.fields(owner):
        kinds = get_args(field.type) or (field.type,)
        kind: Any = next(kind for kind in kinds if kind is not NoneType)
        repeated = get_origin(field.type) is tuple
        described = _setting_of(owner, field.name)
        found.append(
            Option(field.name, kind, NoneType in kinds, repeated, field.default, described)
        )
    return found


def _setting_of(owner: type, name: str) -> Setting:
    """The setting of a field, from the first class that describes it."""
    for base in owner.__mro__:
        field = getattr(base, "__dataclass_fields__", {}).get(name)
        if field is not None and KEY in field.metadata:
            return field.metadata[KEY]
    raise TypeError(f"{owner.__name__}.{name} has no description: make it a `setting`")


def as_json(config: Any) -> dict[str, Any]:
    """The settings in types that JSON has; paths become texts."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def check_settings(config: Any) -> None:
    """Raise ValueError for the first field with a value that it does not take."""
    for option in options(config):
        value = getattr(config, option.name)
        if value is None and option.optional:
            continue
        if option.repeated and not isinstance(value, list | tuple):
            raise ValueError(f"{option.name} is {value!r}: it must be a list")
        for one in value if option.repeated else [value]:
            if not option.setting.allows(one, option.kind):
                wanted = option.setting.wanted(option.kind)
                wanted += " or None" if option.optional else ""
                raise ValueError(f"{option.name} is {one!r}: it must be {wanted}")
