"""A pure-PyTorch reward-model trainer: pairwise Bradley-Terry training with every step in the open.

The algorithm, in reading order: tokenization, batching, model, attention, loss, schedule, optim,
metrics; distributed and sharding are how it runs on many processes. train.py puts them together.

In a notebook:

    from rmood import diagnose, load_scorer

    scorer = load_scorer("models/toy-rm")
    scorer.score([[conversation_a, conversation_b]])       # [[reward_a, reward_b]], log-odds
    diagnose("rm_rewards.json", "test_reward_gold.json")   # numbers and findings
"""

import importlib
import os

# What torch reads from the environment when it is imported: whoever imports torch first does
# without. What the user has set stays.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    # CUDA memory in pieces that can grow, as passes differ in size.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
if "OMP_WAIT_POLICY" not in os.environ:
    # How long a CPU thread of OpenMP waits busily for the others before it sleeps. By default some
    # milliseconds: beside other jobs they take the core from the thread that is waited for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Public names, each with the module it comes from. They are imported when first used: torch and
# transformers take seconds, and comparing two rewards files needs neither.
_PUBLIC = {
    "UserError": "errors",
    "Group": "batching",
    "pack": "batching",
    "pad": "batching",
    "RewardModel": "model",
    "load_reward_model": "loading",
    "save_reward_model": "export",
    "Scorer": "scoring",
    "load_scorer": "scoring",
    "LossOptions": "loss",
    "bradley_terry_loss": "loss",
    "pair_losses": "loss",
    "learning_rate": "schedule",
    "HEALTHY": "metrics",
    "pair_metrics": "metrics",
    "Pair": "files.tables",
    "join_conversations": "files.tables",
    "read_pairs": "files.tables",
    "read_prompts": "files.tables",
    "read_responses": "files.tables",
    "read_rewards": "files.tables",
    "Diagnosis": "diagnosis.run",
    "best_of_n": "diagnosis.run",
    "diagnose": "diagnosis.run",
    "quality": "diagnosis.run",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rmood' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
