"""Settings that must stand before transformers, datasets or matplotlib are imported."""

import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# A busy machine is slow, not wrong.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests run first: they are fast, and what breaks them breaks the notebooks too."""
    items.sort(key=lambda item: "notebooks" in item.path.parts)
