"""Where the files and models of a dataset are."""

import os
from pathlib import Path

from ..errors import UserError

FILES = {  # split -> role -> path below datasets/<dataset>/, as in the reference pipeline
    "train": {
        "prompts": "rm/rm_prompts.json",
        "responses": "rm/rm_sft.json",
        "rewards": "rm/rm_rewards.json",
        "pairs": "rm/rm_implicit.jsonl",
    },
    "test": {
        "prompts": "test/test_prompts.json",
        "responses": "rm/test_sft.json",
        "rewards": "rm/test_reward_gold.json",
        "pairs": "rm/test_implicit.jsonl",
    },
}
ALPACAFARM_SFT = "Hahmdong/RMOOD-qwen3-4b-alpacafarm-sft"  # on the hub
ALPACAFARM_GOLD = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"  # on the hub
ALPACAFARM_PROXY = "RMOOD-qwen3-4b-alpacafarm-rm"  # below models/


def home_folder() -> Path:
    """The folder that all default paths start from: RMOOD_HOME, or else the repository."""
    home = Path(os.environ.get("RMOOD_HOME") or Path(__file__).resolve().parents[2])
    if not home.is_dir():
        raise UserError(f"RMOOD_HOME={home}: no such folder: make it, or unset RMOOD_HOME")
    return home


def cache_folder() -> Path:
    """Where token ids are kept between runs; deleting it costs nothing but time."""
    return home_folder() / "cache"


def dataset_paths(dataset: str, split: str = "train", home: Path | None = None) -> dict[str, str]:
    """Role -> path, for every file and model of a dataset.

    prompts, responses, rewards, pairs: of the split; test_prompts, ...: of the test split.
    sft, gold, proxy: the models, each a folder or a name on the hub.
    report; and the folders home, data, models.
    home: home_folder() unless given; Path("") makes the paths relative to it.
    """
    if home is None:
        home = home_folder()
    data = home / "datasets" / dataset
    models = home / "models"
    paths = {
        "home": home,
        "data": data,
        "models": models,
        "report": home / "reports" / f"{dataset}.html",
    }
    for role, file in FILES[split].items():
        paths[role] = data / file
    for role, file in FILES["test"].items():
        paths[f"test_{role}"] = data / file
    if dataset == "alpacafarm":
        paths["sft"] = ALPACAFARM_SFT
        paths["gold"] = ALPACAFARM_GOLD
        paths["proxy"] = models / ALPACAFARM_PROXY
    else:
        paths["sft"] = models / f"{dataset}-sft"
        paths["gold"] = models / f"{dataset}-gold"
        paths["proxy"] = models / f"{dataset}-rm"
    return {role: str(path) for role, path in paths.items()}
