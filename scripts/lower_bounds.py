"""Print every dependency of pyproject.toml without its upper bound, for `make test-latest`."""

import re
import tomllib
from pathlib import Path

text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
project = tomllib.loads(text)["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for line in sorted({line for group in groups for line in group}):
    if not line.startswith(project["name"]):
        print(re.sub(r",<[\w.]+", "", line))
