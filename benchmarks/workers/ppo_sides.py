"""The processes that `benchmarks/ppo_step.py` compares: their environments, models and settings."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.runs import project_root

WORKER = Path(__file__).with_name("ppo_step.py")
FIRST = 0x4E00  # as in the worker
SIZES = {  # hidden size, layers, heads, feed-forward size
    "S": (128, 4, 4, 512),
    "M": (256, 6, 8, 1024),
    "L": (512, 6, 8, 2048),
}
PEERS = {"newer": "trl==1.12.0", "older": "trl==0.11.4", "trl": "trl==1.16.0"}
PINS = ("transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
DEFAULTS: dict[str, Any] = {
    "size": "S",
    "batch": 64,
    "prompt": 64,
    "length": 32,
    "samples": 1,
    "lr": 1e-5,
    "kl_coef": 0.05,
    "seed": 0,
    "rule": False,
    "variable": False,
    "floor": False,
    "precision": "highest",
    "cores": [0],
    "value_head_std": 0.0,
    "vf_coef": 0.1,
}
BEST = matmul_precision()  # what this machine multiplies fastest with
ROWS = {  # what the tables call a side, and what is special about it
    "ours": {"side": "ours"},
    "ours, best setting": {"side": "ours", "precision": BEST},
    "ours, best, 4 samples a prompt": {"side": "ours", "precision": BEST, "samples": 4},
    "TRL 1.12.0": {"side": "newer"},
    "TRL 0.11.4": {"side": "older"},
}
if DEFAULTS["precision"] == BEST:
    del ROWS["ours, best setting"]  # it is the first row
PLAIN = ("ours", "TRL 1.12.0", "TRL 0.11.4")
LEARNERS = {  # the second's two settings were chosen on this rule
    "ours": ROWS["ours"],
    "ours, random value head, vf_coef 0.5": {
        "side": "ours",
        "value_head_std": 0.05,
        "vf_coef": 0.5,
    },
    "TRL 0.11.4": ROWS["TRL 0.11.4"],
}


def python(side: str) -> str:
    """The interpreter of a side; a peer's environment is made at the first call."""
    if side == "ours":
        return sys.executable
    folder = project_root() / "runs" / "benchmarks" / PEERS[side]
    run = str(folder / "bin" / "python")
    if not (folder / "complete").exists():
        print(f"installing {PEERS[side]} into {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        install = [run, "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*install, f"torch=={torch.__version__.split('+')[0]}"], check=True)
        subprocess.run([*install, PEERS[side], *PINS], check=True)
        (folder / "complete").touch()
    return run


def write_models(folder: Path, size: str, variable: bool) -> Path:
    """A policy and a reward model with random weights, and a tokenizer of a character a token."""
    vocabulary = {chr(FIRST + i): i for i in range(2000)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(FIRST + 2)))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=chr(FIRST), eos_token=chr(FIRST + 1)
    )
    hidden, layers, heads, ffn = SIZES[size]
    config = OPTConfig(
        vocab_size=2000,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=ffn,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        num_labels=1,
    )
    torch.manual_seed(0)
    for name, architecture in (
        ("policy", OPTForCausalLM),
        ("reward", OPTForSequenceClassification),
    ):
        model = architecture(config)
        if name == "policy" and variable:
            end_after_a_third(model)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@torch.no_grad()
def end_after_a_third(model: OPTForCausalLM) -> None:
    """Make EOS so likely that a response of at most 32 tokens has about 11 in the mean."""
    direction = torch.nn.functional.normalize(torch.randn(model.config.hidden_size), dim=0)
    model.model.decoder.final_layer_norm.bias += 3.5 * direction
    model.model.decoder.embed_tokens.weight[1] = direction


class Side:
    """A worker process that makes a step when told to."""

    def __init__(self, folder: Path, name: str, worker: Path = WORKER, **options: Any):
        options = {**DEFAULTS, **(ROWS | LEARNERS).get(name, {}), **options}
        self.folder = Path(tempfile.mkdtemp(dir=folder))  # sides must not share what they write
        options["folder"] = str(write_models(self.folder, options["size"], options["variable"]))
        self.name = name
        environment = {
            **os.environ,
            "RLHF_MATMUL_PRECISION": options["precision"],
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [python(options["side"]), str(worker), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            stderr=(folder / "errors.txt").open("a"),
        )
        self.log = folder / "errors.txt"
        self._read()

    def step(self, what: str = "step") -> dict[str, float]:
        """What the worker reports of its next step, which it may be told to take `memory` of."""
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:  # libraries print lines of their own
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} stopped:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
