"""Plant a fault, diagnose, and see whether it is named first: every fault that `evaluate.py diagnose` claims to tell apart.

    reads   what scripts/quickstart.sh built (RMOOD_HOME): datasets/toy, models/toy-sft
    writes  a table on stdout, the same with --json PATH; what it trains goes to --work and is kept for a second look

    python benchmarks/planted_faults.py                          all of them: some twenty minutes on 2 cores
    python benchmarks/planted_faults.py --only noisy_labels healthy

Faults of the data and of the settings are planted as a user would meet them. Those that train.py cannot make (another scored
token, cut rows, a frozen backbone, per-pair centring) are planted by replacing one function of it in a process of its own.
"""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood import records
from rmood.config import layout, opt, parse, run_script

TRAIN = ["--lr", "1e-3", "--epochs", "4", "--batch-size", "32"]


@dataclass(frozen=True)
class Config:
    dataset: str = opt("toy", "what quickstart built")
    only: list[str] = opt([], "these alone: names of the table's first column")
    work: str = opt("{home}/planted", "folder for what is trained on the way")
    seed: int = opt(0, "of the faults drawn at random, and of training")
    json: str = opt("", "write the findings to this file")


def main() -> None:
    cfg = parse(Config, __doc__)
    paths = layout(cfg.dataset) | {"proxy": str(Path(cfg.work, "healthy", "rm"))}
    rng, rows = random.Random(cfg.seed), []
    FAULTS["healthy"][0](cfg, paths, Path(cfg.work, "healthy"), rng)  # the faults of scoring and of gold need it
    print(f"{'planted':30}{'named first':28}{'in all':8}evidence")
    for name, (plant, wanted) in FAULTS.items():
        if not cfg.only or name in cfg.only:
            report, folder = plant(cfg, paths, Path(cfg.work, name), rng), Path(cfg.work, name)
            found = diagnose(cfg, folder, *report)
            named = found[0]["id"] if found else "no finding"
            rows.append(dict(planted=name, wanted=wanted or "no finding", findings=found, first=named == (wanted or "no finding")))
            print(f"{name:30}{named:28}{'right' if rows[-1]['first'] else 'WRONG':8}{found[0]['evidence'] if found else ''}", flush=True)
    print(f"{sum(row['first'] for row in rows)} of {len(rows)} named first")
    if cfg.json:
        records.write_json(cfg.json, rows)


def diagnose(cfg: Config, folder: Path, *flags: str) -> list[dict]:
    run("evaluate.py", "diagnose", "--dataset", cfg.dataset, "--report", folder / "report.html", "--json", folder / "findings.json", *flags)
    return records.read_json(str(folder / "findings.json"))["findings"]


def run(script: str, *arguments) -> None:
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise records.BadInput(f"{script} {' '.join(map(str, arguments))}: {done.stderr.strip()[-1500:]}")


def read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# ---- faults: each returns the flags with which it is diagnosed ---------------------------------------------------


def trained(*flags: str, patch: str = "", pairs=None):
    """Train with these flags; patch: name of a function of this file that changes train.py; pairs: rows -> rows."""

    def plant(cfg: Config, paths: dict, folder: Path, rng: random.Random) -> tuple:
        data = paths["pairs"]
        if pairs:
            data = str(folder / "pairs.jsonl")
            records.write_jsonl(data, pairs(read_lines(paths["pairs"]), rng, paths))
        script = [__file__, "--patched", patch] if patch else ["train.py"]
        if not (folder / "rm" / "config.json").exists():
            run(*script, "--dataset", cfg.dataset, "--data-path", data, "--output-dir", folder / "rm", "--seed", cfg.seed, *TRAIN, *flags)
        return "--models", folder / "rm"

    return plant


def rewards(change):
    """The healthy proxy's rewards by label.py, then spoiled: change(rows, proxy's scorer, conversations, rng) -> rows."""

    def plant(cfg: Config, paths: dict, folder: Path, rng: random.Random) -> tuple:
        from rmood.scoring import load_scorer

        path = str(folder / "rewards.json")
        run("label.py", "--dataset", cfg.dataset, "--split", "test", "--model-name", paths["proxy"], "--target-path", path, "--dtype", "float32")
        prompts, responses = records.read_prompts(paths["test_prompts"]), records.read_responses(paths["test_responses"])
        conversations = records.conversations(prompts, responses)
        rows = change(records.read_rewards(path), load_scorer(paths["proxy"]), conversations, rng)
        records.write_json(path, rows)
        return "--rewards-path", path

    return plant


def gold(change):
    """The healthy proxy against a spoiled gold file: change(gold's rows) -> rows."""

    def plant(cfg: Config, paths: dict, folder: Path, rng: random.Random) -> tuple:
        records.write_json(str(folder / "gold.json"), change(records.read_rewards(paths["test_rewards"]), rng))
        return "--models", paths["proxy"], "--gold-path", folder / "gold.json", "--prompts-path", paths["test_prompts"], "--responses-path", paths["test_responses"]

    return plant


def other_template(cfg: Config, paths: dict, folder: Path, rng: random.Random) -> tuple:
    template = Path(paths["proxy"], "chat_template.jinja").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "other.jinja").write_text(template.replace("<|im_end|>\\n", "<|im_end|>"))
    return "--models", paths["proxy"], "--chat-template", folder / "other.jinja"


def flip(share: float):
    def change(rows: list[dict], rng: random.Random, paths: dict) -> list[dict]:
        return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if rng.random() < share else row for row in rows]  # the rewards stay

    return change


def shuffled_labels(rows: list[dict], rng: random.Random, paths: dict) -> list[dict]:
    """As preprocess.py makes them of a gold file in another order."""
    order = [(row["chosen_reward"], row["rejected_reward"]) for row in rows]
    rng.shuffle(order)
    rows = flip(0.5)(rows, rng, paths)
    return [row | {"chosen_reward": a, "rejected_reward": b} for row, (a, b) in zip(rows, order)]


def test_prompts_too(rows: list[dict], rng: random.Random, paths: dict) -> list[dict]:
    extra = read_lines(paths["test_pairs"])
    return rows + [{key: value for key, value in row.items() if key != "index"} for row in extra[: len(extra) // 2]]


def shuffle_rows(rows, scorer, conversations, rng):
    rng.shuffle(rows)
    return rows


def as_plain(rows, scorer, conversations, rng):
    from rmood.probes import plain_texts, token_rewards
    from rmood.tokenization import encode

    return [[float(token_rewards(scorer, encode([plain_texts(c)[1]], scorer.tokenizer))[0][-1]) for c in row] for row in conversations]


def at_a_pad(rows, scorer, conversations, rng):
    from rmood.probes import token_rewards

    return [[float(token_rewards(scorer, [[*ids, scorer.tokenizer.pad_token_id]])[0][-1]) for ids in group.rows] for group in scorer.groups(conversations)[0]]


def before_the_end(rows, scorer, conversations, rng):
    from rmood.probes import token_rewards

    return [[float(token_rewards(scorer, [ids[:-2]])[0][-1]) for ids in group.rows] for group in scorer.groups(conversations)[0]]


def cut_at_36(rows, scorer, conversations, rng):
    from rmood.probes import token_rewards

    return [[float(token_rewards(scorer, [ids[:36]])[0][-1]) for ids in group.rows] for group in scorer.groups(conversations)[0]]


def with_dropout(rows, scorer, conversations, rng):
    """Rewards of a model in training mode: noise in every hidden state."""
    import torch

    embedding = scorer.model.backbone.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, output: torch.nn.functional.dropout(output, 0.1))
    return scorer.score(conversations)


# ---- patches of train.py, each in a process of its own -----------------------------------------------------------


def pad_is_scored(train) -> None:
    encode, rng = train.encode_rendered, random.Random(0)
    train.encode_rendered = lambda conversations, tokenizer: [row + [tokenizer.pad_token_id] * rng.randint(1, 8) for row in encode(conversations, tokenizer)]


def token_before_eos_is_scored(train) -> None:
    encode = train.encode_rendered
    train.encode_rendered = lambda conversations, tokenizer: [row[:-2] for row in encode(conversations, tokenizer)]


def rows_are_cut(train) -> None:
    encode = train.encode_rendered
    train.encode_rendered = lambda conversations, tokenizer: [row[:30] for row in encode(conversations, tokenizer)]


def no_template(train) -> None:
    from rmood.probes import plain_texts
    from rmood.tokenization import encode

    train.encode_rendered = lambda conversations, tokenizer: encode([plain_texts(c)[1] for c in conversations], tokenizer)


def backbone_is_frozen(train) -> None:
    import torch

    build = train.build_optimizer

    def head_only(model, *arguments):
        optimizer = build(model, *arguments)
        step, weights = optimizer.step, list(model.backbone.parameters())

        def step_of_the_head() -> None:
            before = [weight.detach().clone() for weight in weights]
            step()
            with torch.no_grad():
                for weight, old in zip(weights, before):
                    weight.copy_(old)

        optimizer.step = step_of_the_head
        return optimizer

    train.build_optimizer = head_only


def pairs_are_centred(train) -> None:
    train.centring_loss = lambda rewards, center: rewards.sum(dim=1) ** 2


def dropout_is_on(train) -> None:
    import torch

    load = train.load_reward_model

    def with_dropout(*arguments, **options):
        model = load(*arguments, **options)
        model.config.attention_dropout = 0.3
        for layer in model.backbone.layers:
            layer.mlp.register_forward_hook(lambda module, args, output: torch.nn.functional.dropout(output, 0.3, module.training))
        return model

    train.load_reward_model = with_dropout


FAULTS = {  # name: how it is planted, the finding wanted first
    "healthy": (trained(), None),
    "rate_too_low": (trained("--lr", "5e-5"), "learning_rate_too_low"),
    "rate_too_low_but_less": (trained("--lr", "1e-4"), "learning_rate_too_low"),
    "too_few_epochs": (trained("--epochs", "1"), "too_few_epochs"),
    "pure_bf16": (trained("--precision", "bf16", "--lr", "2e-4"), "bf16_updates_lost"),
    "pad_scored_in_training": (trained(patch="pad_is_scored"), "wrong_scored_token"),
    "token_before_eos_in_training": (trained(patch="token_before_eos_is_scored"), "wrong_scored_token"),
    "pad_scored_at_scoring": (rewards(at_a_pad), "wrong_scored_token"),
    "token_before_eos_at_scoring": (rewards(before_the_end), "wrong_scored_token"),
    "cut_in_training": (trained(patch="rows_are_cut"), "closing_token_cut"),
    "cut_at_scoring": (rewards(cut_at_36), "closing_token_cut"),
    "long_pairs_left_out": (trained("--max-length", "40"), "closing_token_cut"),
    "no_template_in_training": (trained(patch="no_template"), "chat_template_missing"),
    "no_template_at_scoring": (rewards(as_plain), "chat_template_missing"),
    "other_template_at_scoring": (other_template, "chat_template_differs"),
    "20%_flipped": (trained(pairs=flip(0.2)), "noisy_labels"),
    "all_flipped": (trained(pairs=flip(1.0)), "labels_flipped"),
    "labels_shuffled": (trained(pairs=shuffled_labels), "rewards_shuffled"),
    "rewards_shuffled": (rewards(shuffle_rows), "rewards_shuffled"),
    "gold_shuffled": (gold(lambda rows, rng: rng.sample(rows, len(rows))), "rewards_shuffled"),
    "backbone_frozen": (trained(patch="backbone_is_frozen"), "backbone_frozen"),
    "dropout_in_training": (trained(patch="dropout_is_on"), "dropout_left_on"),
    "dropout_at_scoring": (rewards(with_dropout), "dropout_left_on"),
    "centred_by_pair": (trained("--centring", "1", patch="pairs_are_centred"), "rewards_overcentred"),
    "test_prompts_in_training": (trained(pairs=test_prompts_too), "duplicate_prompts"),
    "gold_clipped": (gold(lambda rows, rng: [[max(-1.0, min(1.0, r)) for r in row] for row in rows]), "gold_saturated"),
    "gold_rounded": (gold(lambda rows, rng: [[float(r > 5) for r in row] for row in rows]), "gold_nearly_constant"),
}


def patched() -> None:
    """This file again, as the process that trains with one function replaced."""
    name = sys.argv[2]
    sys.argv = ["train.py", *sys.argv[3:]]
    import train

    globals()[name](train)
    run_script(train.main)


if __name__ == "__main__":
    patched() if sys.argv[1:2] == ["--patched"] else run_script(main)
