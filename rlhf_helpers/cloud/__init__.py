"""Google Cloud for the course: set-up and its check, storage, clean-up, cost.

Credentials are google-auth's application default ones (`gcloud auth application-default login`);
no key is read or written here. If the environment variable STORAGE_EMULATOR_HOST is set,
google-cloud-storage talks to that emulator, and no other service of Google is asked.
"""

from rlhf_helpers.cloud.check import check_setup
from rlhf_helpers.cloud.clean_up import clean_up_storage, clean_up_vertex
from rlhf_helpers.cloud.commands import clean_up_commands, setup_commands
from rlhf_helpers.cloud.cost import (
    ENDPOINT,
    EXAMPLE_PRICES,
    GOOGLE_RUN,
    HOURS_A_MONTH,
    Job,
    cost_table,
    price_table,
)
from rlhf_helpers.cloud.setup import CloudError, Setup
from rlhf_helpers.cloud.storage import list_data, upload

__all__ = [
    "ENDPOINT",
    "EXAMPLE_PRICES",
    "GOOGLE_RUN",
    "HOURS_A_MONTH",
    "CloudError",
    "Job",
    "Setup",
    "check_setup",
    "clean_up_commands",
    "clean_up_storage",
    "clean_up_vertex",
    "cost_table",
    "list_data",
    "price_table",
    "setup_commands",
    "upload",
]
