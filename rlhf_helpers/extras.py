"""Optional packages: `pip install "rlhf-helpers[course]"` and the other extras bring them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Name the extra to install where an import in this block fails.

        with needs_extra("course"):
            import matplotlib.pyplot as plt

    Raises ModuleNotFoundError with the package that is missing and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error.name} is not installed: pip install "rlhf-helpers[{extra}]"', name=error.name
        ) from None


def require(extra: str, *packages: str) -> None:
    """Raise the error of `needs_extra` if a package is missing; nothing is imported."""
    with needs_extra(extra):
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
