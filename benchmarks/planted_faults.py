"""Plant a fault, diagnose, and see whether it is named first: all faults that evaluate.py names.

reads   what scripts/quickstart.sh built (RMOOD_HOME): datasets/toy, models/toy-sft
writes  a table on stdout, the same with --json PATH; what it trains goes to --work and is kept

python benchmarks/planted_faults.py                          all: some twenty minutes on 2 cores
python benchmarks/planted_faults.py --only noisy_labels healthy

Faults of the data and of the settings are planted as a user would meet them. Those that train.py
cannot make (another scored token, cut rows, a frozen backbone, per-pair centring) are planted by
replacing one function of it in a process of its own.
"""

import json
import random
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.paths import dataset_paths
from rmood.files.rows import read_json, write_json, write_jsonl
from rmood.files.tables import join_conversations, read_prompts, read_responses, read_rewards

TRAIN = ["--lr", "1e-3", "--epochs", "4", "--batch-size", "32"]


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("toy", "what quickstart built")
    only: list[str] = opt([], "plant these faults alone: names of the table's first column")
    work: str = opt("{home}/planted", "folder for what is trained on the way")
    seed: int = opt(0, "seed for the random faults, and for training")
    json: str = opt("", "write the findings to this file")
    # fmt: on


@dataclass(frozen=True)
class Bench:
    """What planting a fault takes."""

    dataset: str
    seed: int
    paths: dict[str, str]  # of the dataset; "proxy" is the healthy one that is trained here
    rng: random.Random
    folder: Path  # for the files of this fault


def main() -> None:
    cfg = parse(Config, __doc__)
    healthy = Path(cfg.work, "healthy")
    paths = dataset_paths(cfg.dataset) | {"proxy": str(healthy / "rm")}
    rng = random.Random(cfg.seed)
    plant, _ = FAULTS["healthy"]
    plant(Bench(cfg.dataset, cfg.seed, paths, rng, healthy))  # faults of scoring and gold need it

    print(f"{'planted':30}{'named first':28}{'in all':8}evidence")
    rows = []
    for name, (plant, wanted) in FAULTS.items():
        if cfg.only and name not in cfg.only:
            continue
        bench = Bench(cfg.dataset, cfg.seed, paths, rng, Path(cfg.work, name))
        findings = diagnose(bench, plant(bench))
        named = findings[0]["id"] if findings else "no finding"
        evidence = findings[0]["evidence"] if findings else ""
        wanted = wanted or "no finding"
        is_first = named == wanted
        rows.append({"planted": name, "wanted": wanted, "findings": findings, "first": is_first})
        print(f"{name:30}{named:28}{'right' if is_first else 'WRONG':8}{evidence}", flush=True)
    print(f"{sum(row['first'] for row in rows)} of {len(rows)} named first")
    if cfg.json:
        write_json(cfg.json, rows)


def diagnose(bench: Bench, flags: list) -> list[dict]:
    """The findings of evaluate.py with these flags."""
    found = bench.folder / "findings.json"
    outputs = ["--report", bench.folder / "report.html", "--json", found]
    run("evaluate.py", "diagnose", "--dataset", bench.dataset, *outputs, *flags)
    return read_json(str(found))["findings"]


def run(script: str, *arguments) -> None:
    words = [str(argument) for argument in arguments]
    command = [sys.executable, str(REPOSITORY / script), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script} {' '.join(words)}: {done.stderr.strip()[-1500:]}")


def read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# ---- ways to plant: each returns plant(bench) -> the flags with which it is diagnosed ----------


def trained(*flags: str, patch: str = "", change=None):
    """A proxy trained with these flags.

    patch: name of a function of this file that replaces a function of train.py.
    change: (rows of the pairs file, bench) -> rows.
    """

    def plant(bench: Bench) -> list:
        data = bench.paths["pairs"]
        if change:
            data = str(bench.folder / "pairs.jsonl")
            write_jsonl(data, change(read_lines(bench.paths["pairs"]), bench))
        model = bench.folder / "rm"
        if not (model / "config.json").exists():
            script = [__file__, "--patched", patch] if patch else ["train.py"]
            files = ["--dataset", bench.dataset, "--data-path", data, "--output-dir", model]
            run(*script, *files, "--seed", bench.seed, *TRAIN, *flags)
        return ["--models", model]

    return plant


def scored(change):
    """The healthy proxy's rewards by label.py, changed.

    change: (rows, scorer, conversations, rng) -> rows.
    """

    def plant(bench: Bench) -> list:
        from rmood.scoring import load_scorer

        paths = bench.paths
        rewards = str(bench.folder / "rewards.json")
        files = ["--model-name", paths["proxy"], "--target-path", rewards]
        flags = ["--dataset", bench.dataset, "--split", "test", "--dtype", "float32"]
        run("label.py", *files, *flags)
        prompts = read_prompts(paths["test_prompts"])
        responses = read_responses(paths["test_responses"])
        conversations = join_conversations(prompts, responses)
        scorer = load_scorer(paths["proxy"])
        write_json(rewards, change(read_rewards(rewards), scorer, conversations, bench.rng))
        return ["--rewards-path", rewards]

    return plant


def gold(change):
    """The healthy proxy against a gold file that was changed: (rows, rng) -> rows."""

    def plant(bench: Bench) -> list:
        paths = bench.paths
        path = bench.folder / "gold.json"
        write_json(str(path), change(read_rewards(paths["test_rewards"]), bench.rng))
        texts = ["--prompts-path", paths["test_prompts"]]
        texts += ["--responses-path", paths["test_responses"]]
        return ["--models", paths["proxy"], "--gold-path", path, *texts]

    return plant


# ---- faults of the pairs -----------------------------------------------------------------------


def flip(share: float):
    """Swap chosen and rejected in a share of the pairs; gold's rewards stay where they are."""

    def change(rows: list[dict], bench: Bench) -> list[dict]:
        for row in rows:
            if bench.rng.random() < share:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        return rows

    return change


def shuffled_labels(rows: list[dict], bench: Bench) -> list[dict]:
    """As preprocess.py makes them of a gold file in another order."""
    rewards = [(row["chosen_reward"], row["rejected_reward"]) for row in rows]
    bench.rng.shuffle(rewards)
    rows = flip(0.5)(rows, bench)
    for row, (chosen, rejected) in zip(rows, rewards):
        row["chosen_reward"] = chosen
        row["rejected_reward"] = rejected
    return rows


def test_prompts_too(rows: list[dict], bench: Bench) -> list[dict]:
    """Half of the test pairs as well, without their row in the test prompts."""
    extra = read_lines(bench.paths["test_pairs"])
    for row in extra:
        row.pop("index", None)
    return rows + extra[: len(extra) // 2]


# ---- faults of scoring -------------------------------------------------------------------------


def shuffle_rows(rows, scorer, conversations, rng):
    rng.shuffle(rows)
    return rows


def read_as(change):
    """The reward at the last token of changed token ids: change(row, tokenizer) -> row."""

    def rewards(rows, scorer, conversations, rng):
        from rmood.diagnosis.probes import last_rewards

        groups, _ = scorer.groups(conversations)
        changed = [[change(row, scorer.tokenizer) for row in group.rows] for group in groups]
        return [last_rewards(scorer, row).tolist() for row in changed]

    return rewards


def as_plain_text(rows, scorer, conversations, rng):
    from rmood.diagnosis.probes import last_rewards, plain_texts
    from rmood.tokenization import encode

    texts = [[plain_texts(conversation)[1] for conversation in row] for row in conversations]
    return [last_rewards(scorer, encode(row, scorer.tokenizer)).tolist() for row in texts]


def with_dropout(rows, scorer, conversations, rng):
    """Rewards of a model in training mode: noise in every hidden state."""
    import torch

    def drop(module, arguments, output):
        return torch.nn.functional.dropout(output, 0.1)

    scorer.model.backbone.get_input_embeddings().register_forward_hook(drop)
    return scorer.score(conversations)


def other_template(bench: Bench) -> list:
    template = Path(bench.paths["proxy"], "chat_template.jinja").read_text()
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = bench.folder / "other.jinja"
    path.write_text(template.replace("<|im_end|>\\n", "<|im_end|>"))
    return ["--models", bench.paths["proxy"], "--chat-template", path]


# ---- faults of gold ----------------------------------------------------------------------------


def shuffled(rows: list[list[float]], rng: random.Random) -> list[list[float]]:
    return rng.sample(rows, len(rows))


def clipped(rows: list[list[float]], rng: random.Random) -> list[list[float]]:
    return [[max(-1.0, min(1.0, reward)) for reward in row] for row in rows]


def rounded(rows: list[list[float]], rng: random.Random) -> list[list[float]]:
    return [[float(reward > 5) for reward in row] for row in rows]


# ---- faults of train.py: one of its functions replaced, in a process of its own ----------------


def change_rows(train, change) -> None:
    """Replace train.encode_rendered: change(row, tokenizer) -> row, of token ids."""
    encode_rendered = train.encode_rendered

    def changed(conversations, tokenizer):
        rows = encode_rendered(conversations, tokenizer)
        return [array("i", change(row, tokenizer)) for row in rows]

    train.encode_rendered = changed


def pad_is_scored(train) -> None:
    rng = random.Random(0)

    def with_pads(row, tokenizer):
        return [*row, *[tokenizer.pad_token_id] * rng.randint(1, 8)]

    change_rows(train, with_pads)


def token_before_eos_is_scored(train) -> None:
    change_rows(train, lambda row, tokenizer: row[:-2])


def rows_are_cut(train) -> None:
    change_rows(train, lambda row, tokenizer: row[:30])


def no_template(train) -> None:
    from rmood.diagnosis.probes import plain_texts
    from rmood.tokenization import encode

    def encode_plain(conversations, tokenizer):
        return encode([plain_texts(conversation)[1] for conversation in conversations], tokenizer)

    train.encode_rendered = encode_plain


def backbone_is_frozen(train) -> None:
    import torch

    build_optimizer = train.build_optimizer

    def of_the_head(model, *arguments, **options):
        optimizer = build_optimizer(model, *arguments, **options)
        step = optimizer.step
        weights = list(model.backbone.parameters())

        def step_of_the_head() -> None:
            before = [weight.detach().clone() for weight in weights]
            step()
            with torch.no_grad():
                for weight, old in zip(weights, before):
                    weight.copy_(old)

        optimizer.step = step_of_the_head
        return optimizer

    train.build_optimizer = of_the_head


def pairs_are_centred(train) -> None:
    """Add (r_chosen + r_rejected)^2 to the loss of each pair."""
    pair_losses = train.pair_losses

    def with_centred_pairs(rewards, gold_margin, center, options):
        losses = pair_losses(rewards, gold_margin, center, options)
        return losses + rewards.sum(dim=1) ** 2

    train.pair_losses = with_centred_pairs


def dropout_is_on(train) -> None:
    import torch

    meta_reward_model = train.meta_reward_model

    def drop(module, arguments, output):
        return torch.nn.functional.dropout(output, 0.3, module.training)

    def with_dropout(*arguments, **options):
        model, source = meta_reward_model(*arguments, **options)
        model.config.attention_dropout = 0.3
        for layer in model.backbone.layers:
            layer.mlp.register_forward_hook(drop)
        return model, source

    train.meta_reward_model = with_dropout


FAULTS = {  # name: how it is planted, the finding wanted first
    "healthy": (trained(), None),
    # settings
    "rate_too_low": (trained("--lr", "5e-5"), "learning_rate_too_low"),
    "rate_too_low_but_less": (trained("--lr", "1e-4"), "learning_rate_too_low"),
    "too_few_epochs": (trained("--epochs", "1"), "too_few_epochs"),
    "pure_bf16": (trained("--precision", "bf16", "--lr", "2e-4"), "bf16_updates_lost"),
    # what is read
    "pad_scored_in_training": (trained(patch="pad_is_scored"), "wrong_scored_token"),
    "token_before_eos_in_training": (
        trained(patch="token_before_eos_is_scored"),
        "wrong_scored_token",
    ),
    "pad_scored_at_scoring": (
        scored(read_as(lambda row, tokenizer: [*row, tokenizer.pad_token_id])),
        "wrong_scored_token",
    ),
    "token_before_eos_at_scoring": (
        scored(read_as(lambda row, tokenizer: row[:-2])),
        "wrong_scored_token",
    ),
    "cut_in_training": (trained(patch="rows_are_cut"), "closing_token_cut"),
    "cut_at_scoring": (scored(read_as(lambda row, tokenizer: row[:36])), "closing_token_cut"),
    "long_pairs_left_out": (trained("--max-length", "40"), "closing_token_cut"),
    "no_template_in_training": (trained(patch="no_template"), "chat_template_missing"),
    "no_template_at_scoring": (scored(as_plain_text), "chat_template_missing"),
    "other_template_at_scoring": (other_template, "chat_template_differs"),
    # labels and their order
    "20%_flipped": (trained(change=flip(0.2)), "noisy_labels"),
    "all_flipped": (trained(change=flip(1.0)), "labels_flipped"),
    "labels_shuffled": (trained(change=shuffled_labels), "rewards_shuffled"),
    "rewards_shuffled": (scored(shuffle_rows), "rewards_shuffled"),
    "gold_shuffled": (gold(shuffled), "rewards_shuffled"),
    # training
    "backbone_frozen": (trained(patch="backbone_is_frozen"), "backbone_frozen"),
    "dropout_in_training": (trained(patch="dropout_is_on"), "dropout_left_on"),
    "dropout_at_scoring": (scored(with_dropout), "dropout_left_on"),
    "centred_by_pair": (trained(patch="pairs_are_centred"), "rewards_overcentred"),
    "test_prompts_in_training": (trained(change=test_prompts_too), "duplicate_prompts"),
    # gold
    "gold_clipped": (gold(clipped), "gold_saturated"),
    "gold_rounded": (gold(rounded), "gold_nearly_constant"),
}


def train_patched() -> None:
    """This file again, as the process that trains with one function of train.py replaced."""
    patch = sys.argv[2]
    sys.argv = ["train.py", *sys.argv[3:]]
    import train

    globals()[patch](train)
    run_script(train.main)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--patched"]:
        train_patched()
    else:
        run_script(main)
