"""Settings that must stand before transformers, datasets or matplotlib are imported."""

import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing is compiled, and every process imports it sooner
# A busy machine is slow, not wrong.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests run before the notebooks: what breaks them breaks the notebooks too.

    Of the unit tests, files with slow tests come first: the last file is a short one then, and no
    process waits long for another one to end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: ("notebooks" in item.path.parts, item.path not in slow))
