"""The base models and regions of Google's RLHF component, and whether the models are available.

Read on 21 November 2026: names, buckets and regions in the component's source (version 2.22), the
end of PaLM on the page PALM. Training and inference run in containers of the project
`vertex-ai-restricted`, so that a project which is not on Google's list can tune none of the models.
"""

from typing import NamedTuple

PALM = "https://cloud.google.com/vertex-ai/generative-ai/docs/deprecations/palm"


class Model(NamedTuple):
    """A base model of the component: the regions that serve it, and whether it is available.

    `regions` is empty where the component names none.
    """

    regions: tuple[str, ...]
    status: str


_RETIRED = f"retired: no new tuning since 9 October 2024, none at all since 9 April 2025 ({PALM})"
_RESTRICTED = (
    "restricted: weights in gs://{}, for projects on Google's list only; whether it still adds any "
    "could not be checked offline"
)
_T5 = _RESTRICTED.format("vertex-llm-restricted")
_LLAMA = _RESTRICTED.format("vertex-rlhf-restricted") + "; besides, Meta's licence"
_BOTH, _EUROPE = ("us-central1", "europe-west4"), ("europe-west4",)

MODELS = {
    "text-bison@001": Model(_BOTH, _RETIRED),
    "text-bison@002": Model((), _RETIRED),
    "chat-bison@001": Model((), _RETIRED),
    "t5-small": Model(_BOTH, _T5),
    "t5-large": Model(_EUROPE, _T5),
    "t5-xl": Model(_EUROPE, _T5),
    "t5-xxl": Model(_EUROPE, _T5),
    "llama-2-7b": Model((), _LLAMA),
    "llama-2-7b-chat": Model((), _LLAMA),
    "llama-2-13b": Model((), _LLAMA),
    "llama-2-13b-chat": Model((), _LLAMA),
}


# The region that tunes, by `accelerator_type`: eight A100 of 80 GB, or 64 TPU v3.
TUNING_REGIONS = {"GPU": "us-central1", "TPU": "europe-west4"}
# Where the other steps may run.
PIPELINE_REGIONS = (
    "asia-northeast1",
    "asia-northeast3",
    "asia-southeast1",
    "europe-west1",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "europe-west9",
    "northamerica-northeast1",
    "us-central1",
    "us-east4",
    "us-west1",
    "us-west4",
)
CMEK = ("GPU", "us-central1")  # the only place that takes a customer's own encryption key


def model_key(large_model_reference: str) -> str:
    """A model's name as the component looks it up: `T5_LARGE` is `t5-large`."""
    return large_model_reference.lower().replace("_", "-")
