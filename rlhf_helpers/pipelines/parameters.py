"""The parameters of a pipeline, checked offline against its compiled spec.

Google's component and ours use the same names, so that one dict serves both.
"""

import json
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from kfp.dsl.graph_component import GraphComponent

TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "STRING": ("text", (str,)),
    "NUMBER_INTEGER": ("a whole number", (int,)),
    "NUMBER_DOUBLE": ("a number", (int, float)),
    "BOOLEAN": ("true or false", (bool,)),
}
# Lengths are from the component's documentation (version 2.22), the other limits from the meaning.
RANGES = {
    "prompt_sequence_length": (1, 8192),
    "target_sequence_length": (1, 1024),
    "reward_model_train_steps": (1, math.inf),
    "reinforcement_learning_train_steps": (1, math.inf),
    "reward_model_learning_rate_multiplier": (1e-6, math.inf),
    "reinforcement_learning_rate_multiplier": (1e-6, math.inf),
    "kl_coeff": (0, math.inf),
    "seed": (0, 2**32 - 1),
}
DATA_SETS = ("preference_dataset", "prompt_dataset", "eval_dataset", "sft_dataset")


def inputs(pipeline: GraphComponent) -> Mapping[str, Any]:
    """The parameters that a compiled pipeline declares: name -> type, default, whether optional."""
    return pipeline.pipeline_spec.root.input_definitions.parameters


def type_name(declared: Any) -> str:
    """`STRING`, `NUMBER_INTEGER`, `NUMBER_DOUBLE` or `BOOLEAN`."""
    kinds = declared.DESCRIPTOR.fields_by_name["parameter_type"].enum_type
    return kinds.values_by_number[declared.parameter_type].name


def check(values: Mapping[str, Any], pipeline: GraphComponent) -> None:
    """Raise ValueError for the first value that the pipeline would refuse.

    It refuses unknown and missing names, wrong types, numbers out of range, and data sets in
    different buckets. None means that a parameter is not given.
    """
    declared = inputs(pipeline)
    for name, value in values.items():
        if name not in declared:
            close = get_close_matches(name, declared, 1)
            meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(declared)}"
            raise ValueError(f"unknown parameter {name!r}; {meant}")
        if value is not None:
            _check_value(name, value, type_name(declared[name]))
    for name, spec in declared.items():
        if not spec.is_optional and not values.get(name):
            raise ValueError(f"the parameter {name!r} is missing: {spec.description.split('.')[0]}")
    check_buckets(values)


def _check_value(name: str, value: Any, kind: str) -> None:
    what, types = TYPES[kind]
    # In Python a bool is an int; a pipeline tells the two apart.
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise ValueError(f"{name} is {value!r}: it must be {what}")
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if isinstance(value, int | float) and not (low <= value <= high and math.isfinite(value)):
        limit = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {value}: it must be {limit}")


def check_buckets(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless all data sets lie in one bucket, or none in any bucket."""
    buckets = {
        name: values[name].removeprefix("gs://").split("/")[0]
        if values[name].startswith("gs://")
        else ""
        for name in DATA_SETS
        if values.get(name)
    }
    if len(set(buckets.values())) > 1:
        places = ", ".join(f"{name} in {bucket or 'a file'}" for name, bucket in buckets.items())
        raise ValueError(f"the data sets lie in different places ({places}): put all in one bucket")


def read(path: Path) -> dict[str, Any]:
    """Read parameters from a JSON or YAML file; raise ValueError unless it holds one object."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as JSON or YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: write one object, as in kl_coeff: 0.1")
    return values


def parse(pairs: Iterable[str], pipeline: GraphComponent) -> dict[str, Any]:
    """Read parameters like `kl_coeff=0.1`, each with the type that the pipeline declares."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r}: write NAME=VALUE, as in kl_coeff=0.1")
        declared = inputs(pipeline).get(name)
        values[name] = text
        if declared is not None and type_name(declared) != "STRING":
            try:
                values[name] = json.loads(text)
            except json.JSONDecodeError:
                what = TYPES[type_name(declared)][0]
                raise ValueError(f"{name} is {text!r}: it must be {what}") from None
    return values
