"""The configs for several GPUs, read as `accelerate launch` reads them; it starts nothing here."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from transformers.models.opt.modeling_opt import OPTDecoderLayer

FOLDER = Path(__file__).parents[2] / "scripts" / "accelerate"
PLAIN = {"ACCELERATE_MIXED_PRECISION": "bf16"}
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
SETTINGS = {"ddp": {}, "fsdp": SHARDED, "deepspeed_zero2": ZERO2, "deepspeed_zero3": ZERO3}
SWITCHES = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}


@pytest.fixture
def started(monkeypatch) -> Callable[..., tuple[Namespace, dict[str, str]]]:
    """`started("ddp", …)`: the launcher's arguments, and its processes' environment variables."""
    found: dict[str, tuple[Namespace, dict[str, str]]] = {}
    monkeypatch.setattr(
        launch, "multi_gpu_launcher", lambda to: found.update(one=(to, prepare_multi_gpu_env(to)))
    )
    monkeypatch.setattr(
        launch,
        "deepspeed_launcher",
        lambda to: found.update(one=(to, prepare_deepspeed_cmd_env(to)[1])),
    )

    def start(name: str, *options: str) -> tuple[Namespace, dict[str, str]]:
        stage = ["-m", "rlhf_helpers", "train", "sft", "--scale", "full"]
        command = [f"--config_file={FOLDER / name}.yaml", *options, *stage]
        launch.launch_command(launch.launch_command_parser().parse_args(command))
        return found.pop("one")

    return start


def test_every_shipped_config_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_processes_are_told_what_the_config_means(name, started):
    arguments, environment = started(name)
    wanted = PLAIN | SETTINGS[name]
    assert {key: environment.get(key) for key in wanted} == wanted
    assert SWITCHES & set(environment) == SWITCHES & set(wanted)
    assert arguments.nproc_per_node == "8"
    assert (arguments.module, arguments.training_script) == (True, "rlhf_helpers")
    assert arguments.training_script_args == ["train", "sft", "--scale", "full"]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_line_says_how_many_gpus_there_are(name, started):
    assert started(name, "--num_processes=2")[0].nproc_per_node == "2"


@pytest.mark.parametrize("name", SETTINGS)
def test_accelerate_knows_every_key(name, tmp_path):
    """It checks the outer keys itself, but would pass over an unknown one within."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    known = set(vars(launch.launch_command_parser().parse_args(["script"])))
    assert {*config.fsdp_config, *config.deepspeed_config} <= known
    changed = Path(shutil.copy(FOLDER / f"{name}.yaml", tmp_path))
    changed.write_text(changed.read_text() + "zero_stage: 3\n")
    with pytest.raises(ValueError, match=r"unknown keys \(\['zero_stage'\]\)"):
        load_config_from_file(str(changed))


def test_fsdp_shards_layer_by_layer_and_saves_whole_models(started, make_model, monkeypatch):
    for name, value in started("fsdp")[1].items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(make_model("opt"))
    assert plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {OPTDecoderLayer}}
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gets_the_stage(stage, started, monkeypatch):
    for name, value in started(f"deepspeed_zero{stage}")[1].items():
        monkeypatch.setenv(name, value)
    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "none"
