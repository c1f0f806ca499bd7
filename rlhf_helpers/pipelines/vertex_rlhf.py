"""Google's RLHF pipeline: its parameters, its steps, its models; and the YAML that Vertex AI runs.

Everything here works offline. Names, types and defaults are read from the compiled component
(google-cloud-pipeline-components 2.22); `google_models` holds what its source says of regions.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_helpers.pipelines import parameters
from rlhf_helpers.pipelines.google_models import (
    CMEK,
    MODELS,
    PIPELINE_REGIONS,
    TUNING_REGIONS,
    model_key,
)


def training_steps(dataset_size: int, epochs: int, batch_size: int = 64) -> int:
    """Training steps for a number of epochs over pairs (reward model) or prompts (PPO).

    The last batch of an epoch may be smaller: an epoch has ceil(size / batch) steps.
    """
    for name, value in locals().items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return math.ceil(dataset_size / batch_size) * epochs


@cache
def pipeline() -> Any:
    """Google's component, compiled in memory."""
    from google_cloud_pipeline_components.preview.llm import rlhf_pipeline

    return rlhf_pipeline


def compile_pipeline(path: str | Path) -> Path:
    """Write Google's pipeline as YAML (`.yaml`), or JSON (`.json`), ready for Vertex AI."""
    from kfp import compiler

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(), str(path))
    return Path(path)


@dataclass(kw_only=True)
class RLHFParameters:
    """All parameters of the component, checked when they are made; None means its default.

    Raises ValueError for a value that the pipeline would refuse, possibly hours later.
    """

    prompt_dataset: str  # gs://…, prompts, JSONL
    preference_dataset: str  # gs://…, pairs, JSONL
    large_model_reference: str  # one of MODELS
    model_display_name: str | None = None
    prompt_sequence_length: int = 512  # tokens, at most 8,192
    target_sequence_length: int = 64  # tokens, at most 1,024
    reward_model_learning_rate_multiplier: float = 1.0
    reinforcement_learning_rate_multiplier: float = 1.0
    reward_model_train_steps: int = 1000  # batches of 64 pairs
    reinforcement_learning_train_steps: int = 1000  # batches of 64 prompts
    kl_coeff: float = 0.1  # price of a nat of KL; 0 invites reward hacking
    instruction: str | None = None  # goes in front of every prompt
    deploy_model: bool = True  # starts an endpoint, which is billed until you delete it
    eval_dataset: str | None = None  # gs://…, for bulk inference, and for the reward model
    project: str | None = None
    accelerator_type: str = "GPU"  # 8 A100 of 80 GB in us-central1, or "TPU": europe-west4
    location: str | None = None  # of all but the tuning; None: where the pipeline runs
    encryption_spec_key_name: str = ""
    tensorboard_resource_id: str = ""  # projects/…/locations/…/tensorboards/…

    def __post_init__(self) -> None:
        parameters.check(asdict(self), pipeline())
        for name in parameters.DATA_SETS:
            if not (getattr(self, name, None) or "gs://").startswith("gs://"):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: upload it, and give its gs:// address"
                )
        _check_served(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RLHFParameters":
        """Make parameters from a plain dict, such as one read from a file."""
        parameters.check(values, pipeline())
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """The parameters to pass to the pipeline: all that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _check_served(given: RLHFParameters) -> None:
    """Raise ValueError unless pipeline and model are available in the regions of the parameters."""
    name, location = given.large_model_reference, given.location
    if model_key(name) not in MODELS:
        raise ValueError(f"large_model_reference is {name!r}: choose one of {', '.join(MODELS)}")
    if given.accelerator_type not in TUNING_REGIONS:
        raise ValueError(
            f"accelerator_type is {given.accelerator_type!r}: choose one of "
            f"{', '.join(TUNING_REGIONS)}"
        )
    tuned_in = TUNING_REGIONS[given.accelerator_type]
    runs_in = location or tuned_in
    if runs_in not in PIPELINE_REGIONS:
        raise ValueError(
            f"location is {location!r}: the pipeline runs in {', '.join(PIPELINE_REGIONS)} only"
        )
    if given.encryption_spec_key_name and (given.accelerator_type, runs_in) != CMEK:
        raise ValueError(
            "encryption_spec_key_name is set: Google encrypts with your key on "
            f"{' in '.join(CMEK)} only. Leave it out, or set accelerator_type and location so"
        )
    regions = MODELS[model_key(name)].regions
    for field, place in (("location", location), ("accelerator_type", tuned_in)):
        if regions and place and place not in regions:
            raise ValueError(
                f"{field} is {getattr(given, field)!r}, which means {place}; {name} is served in "
                f"{' and '.join(regions)} only"
            )
