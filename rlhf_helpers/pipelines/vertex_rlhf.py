"""Google's RLHF pipeline: its parameters, its steps, its models; and the YAML that Vertex AI runs.

Everything here works offline. What Google says of its component is taken from the component
itself (google-cloud-pipeline-components 2.22), by calling its own checks.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_helpers.pipelines import parameters
from rlhf_helpers.pipelines.google_models import MODELS, model_key


def training_steps(dataset_size: int, epochs: int, batch_size: int = 64) -> int:
    """Steps of the reward model (pairs) or of reinforcement learning (prompts) for whole epochs.

    An epoch ends with a batch that may be smaller: ceil(size / batch) steps.
    """
    for name, value in locals().items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return math.ceil(dataset_size / batch_size) * epochs


@cache
def pipeline() -> Any:
    """The component, compiled in memory."""
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
    """All parameters of the component; making one checks them. None leaves it to the component.

    Raises ValueError for a value that the pipeline would refuse, hours later or at once.
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
        """Parameters from a plain dict, as a file or a request holds them."""
        parameters.check(values, pipeline())
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """What the pipeline is given: all but what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _check_served(given: RLHFParameters) -> None:
    """Raise ValueError unless the model can be tuned where these parameters lead."""
    from google_cloud_pipeline_components._implementation.llm import function_based as google
    from google_cloud_pipeline_components._implementation.llm.validate_pipeline import (
        validate_pipeline,
    )

    name, location = given.large_model_reference, given.location
    if model_key(name) not in MODELS:
        raise ValueError(f"large_model_reference is {name!r}: choose one of {', '.join(MODELS)}")
    # The component's own functions: what they refuse here they would refuse in the cloud.
    machine = google.resolve_machine_spec.python_func(accelerator_type=given.accelerator_type)
    tuned_in = machine.tuning_location
    try:
        validate_pipeline.python_func(
            location=location or tuned_in,
            accelerator_type=given.accelerator_type,
            encryption_spec_key_name=given.encryption_spec_key_name,
        )
    except ValueError as error:
        # It lists regions in the order of a set, which is another one in every process.
        reason = re.sub(r"{(.*)}", lambda s: ", ".join(sorted(s[1].split(", "))), str(error))
        raise ValueError(f"location is {location!r}: {reason}") from None
    regions = MODELS[model_key(name)].regions
    for field, place in (("location", location), ("accelerator_type", tuned_in)):
        if regions and place and place not in regions:
            raise ValueError(
                f"{field} is {getattr(given, field)!r}, which means {place}; {name} is served in "
                f"{' and '.join(regions)} only"
            )
