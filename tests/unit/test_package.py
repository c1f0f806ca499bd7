"""The package as others import it: quick, lazy, and without an effect on anything else."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_helpers
from rlhf_helpers.extras import needs_extra, require

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "rlhf_helpers").rglob("*.py")
    if path.stem != "__main__"
)


def fresh(script: str, *arguments: str) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout


# ---- Names at the top ------------------------------------------------------------------------


def test_importing_the_package_is_quick_and_loads_no_other_package():
    script = """
import sys, time
before = set(sys.modules)
start = time.process_time()
import rlhf_helpers
print(time.process_time() - start)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    seconds, others = fresh(script).splitlines()
    assert others == "rlhf_helpers"
    assert float(seconds) < 0.1


def test_the_names_at_the_top_are_those_of_the_modules():
    from rlhf_helpers.configs import PPOConfig
    from rlhf_helpers.ppo import PPOTrainer, Rollout
    from rlhf_helpers.reward_model import RewardModel

    for found in (PPOConfig, PPOTrainer, Rollout, RewardModel):
        assert getattr(rlhf_helpers, found.__name__) is found
        assert found.__doc__ and not found.__doc__.startswith(f"{found.__name__}(")
    assert {*rlhf_helpers.__all__} == {
        "PPOConfig",
        "PPOTrainer",
        "RewardModel",
        "Rollout",
        "__version__",
    }
    assert {*rlhf_helpers.__all__} <= {*dir(rlhf_helpers)}
    assert (ROOT / "rlhf_helpers" / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rlhf_helpers' has no attribute 'PPO'"):
        _ = rlhf_helpers.PPO


def test_the_changelog_begins_with_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [line for line in changelog.splitlines() if line.startswith("## [")]
    assert versions[0].startswith(f"## [{rlhf_helpers.__version__}] - 20")


# ---- No global is changed --------------------------------------------------------------------

COMPARE = """
import json, logging, os, random, sys, warnings
theirs, ours = json.loads(sys.argv[1])
for statement in theirs:
    exec(statement, {})
import numpy, torch

def globals_of_others():
    loggers = logging.root.manager.loggerDict
    levels = {n: x.level for n, x in loggers.items() if isinstance(x, logging.Logger)}
    return {
        "environment": dict(os.environ),
        "logger levels": {n: x for n, x in levels.items() if not n.startswith("rlhf_helpers")},
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "warnings": list(warnings.filters),
        "search path": list(sys.path),
        "random": random.getstate(),
        "numpy": str(numpy.random.get_state()),
        "torch": torch.random.get_rng_state().tolist(),
        "precision": torch.get_float32_matmul_precision(),
        "type": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "hook": sys.excepthook,
    }

before = globals_of_others()
for name in ours:
    __import__(name)
after = globals_of_others()
new = after["logger levels"].items() - before["logger levels"].items()
print(*[n for n, level in new if level or n in before["logger levels"]])
print(*[name for name in before if before[name] != after[name] and name != "logger levels"])
"""


def imports_of_others() -> list[str]:
    """The statements by which the package imports others, so that their effects come first."""
    found = {}
    for path in (ROOT / "rlhf_helpers").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [tree, *(node for node in tree.body if isinstance(node, ast.With))]
        for node in (node for block in blocks for node in block.body):
            text = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom) and "rlhf_helpers" not in text:
                found[text] = True
    return list(found)


@pytest.mark.slow
def test_importing_every_module_changes_no_global():
    printed = fresh(COMPARE, json.dumps([imports_of_others(), MODULES]))
    assert printed.splitlines()[-2:] == ["", ""]


# ---- Optional packages -----------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    remedy = r'^matplotlib is not installed: pip install "rlhf-helpers\[course\]"$'
    with pytest.raises(ModuleNotFoundError, match=remedy), needs_extra("course"):
        import matplotlib  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=remedy):
        require("course", "json", "matplotlib")
    require("course", "json")


def test_without_bitsandbytes_quantised_weights_name_the_remedy(monkeypatch):
    from rlhf_helpers.models import loading_options

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for bits in (4, 8):
        with pytest.raises(ModuleNotFoundError, match=r"bitsandbytes is not .*\[course\]"):
            loading_options(bits)
    assert "quantization_config" not in loading_options(32)


def test_without_deep_lake_its_data_sets_name_the_remedy(tmp_path, monkeypatch):
    from rlhf_helpers.sources.streams import count_rows

    monkeypatch.setitem(sys.modules, "deeplake", None)
    (tmp_path / "_deeplake_log").mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"deeplake is not .*\[course\]"):
        count_rows(tmp_path)
