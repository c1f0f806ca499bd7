"""No key stands in what we commit or what a run writes."""

import json
import os
import re
from pathlib import Path

import pytest

from rlhf_helpers.runs import project_root, runs_dir

QUOTE = r"\\*[\"']"  # inside a notebook, quotation marks are escaped, perhaps twice
KEYS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "service account": rf"{QUOTE}private_key(?:_id)?{QUOTE}\s*:\s*{QUOTE}[^\"'\\]",
    "Google API key": r"\bAIza[\w-]{35}",
    "Google access token": r"\bya29\.[\w-]{20,}",
    "Google refresh token": r"\b1//0[\w-]{30,}",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "Weights & Biases key": r"(?i)(?:wandb|api|login)[^\n]{0,20}?key\W{1,8}[0-9a-f]{40}\b",
    "AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36}",
}
# Put together here, so that this file is not found itself.
HEX = "0123456789abcdef" * 2 + "01234567"
SAMPLES = [
    ("private key", "-----BEGIN " + "PRIVATE KEY-----"),
    ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
    ("service account", json.dumps({"private" + "_key": "x"})),
    ("service account", json.dumps({"source": json.dumps({"private" + "_key_id": HEX})})),
    ("Google API key", "key=AI" + "za" + "Sy" + "x-_9" * 8 + "a"),
    ("Google access token", "Bearer ya" + "29." + "a0Af" * 8),
    ("Google refresh token", "1/" + "/0" + "eXa" * 12),
    ("Hugging Face token", "HF_TOKEN=hf" + "_" + "aB3x" * 8 + "yz"),
    ("Weights & Biases key", "WANDB_API" + f"_KEY={HEX}"),
    ("Weights & Biases key", f'wandb.login(key="{HEX}")'),
    ("AWS access key", "AK" + "IA" + "ABCDEFGH" + "IJ234567"),
    ("GitHub token", "gh" + "p_" + "a1B2" * 9),
]
TEXT = (".py", ".ipynb", ".sh", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".log", ".csv")
LARGEST = 2_000_000  # bytes; what is larger is data or a model


def keys_in(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    # A figure is base64: long enough for anything to occur in it by chance.
    text = re.sub(r'"image/\w+": "[^"]*"', "", text)
    return [f"{path}: {kind}" for kind, pattern in KEYS.items() if re.search(pattern, text)]


def texts_below(top: Path) -> list[Path]:
    """Text files that we or our runs wrote: no virtual environments, no models, no caches."""
    found = []
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if f not in ("__pycache__", "lib", "lib64", "bin")]
        found += [Path(folder, name) for name in files if name.endswith(TEXT)]
    return [path for path in found if path.stat().st_size < LARGEST]


@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_each_pattern_catches_its_kind_of_key(kind, sample, tmp_path):
    for name, text in (("a.log", f"x {sample} y"), ("a.ipynb", json.dumps({"source": [sample]}))):
        (tmp_path / name).write_text(text)
        assert f"{tmp_path / name}: {kind}" in keys_in(tmp_path / name)


def test_every_pattern_is_tried_and_plain_words_are_no_keys(tmp_path):
    assert {kind for kind, _ in SAMPLES} == set(KEYS)
    words = f"the commit {HEX}; the field private_key is empty; AIza; hf_token; no key here: none"
    (tmp_path / "a.md").write_text(words)
    assert keys_in(tmp_path / "a.md") == []


@pytest.mark.parametrize(
    "folder", ["notebooks", "scripts", "rlhf_helpers", "tests", "benchmarks", "data", "img", "runs"]
)
def test_no_key_is_committed_or_logged(folder):
    root = runs_dir() if folder == "runs" else project_root() / folder
    if not root.exists():
        pytest.skip(f"there is no {root.name} yet")
    paths = texts_below(root)
    assert paths or folder == "runs"
    assert [found for path in paths for found in keys_in(path)] == []


def test_no_key_stands_beside_the_folders():
    paths = [path for path in project_root().iterdir() if path.is_file()]
    assert len(paths) >= 5
    assert [found for path in paths for found in keys_in(path)] == []
