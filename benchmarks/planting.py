"""What planted_faults.py plants its faults in: a world, the proxies trained in it, their files.

A case changes one or several of these, as the person would who makes the mistake:

    training    settings, pairs, or a function of train.py        -> a proxy of its own
    tamper      a copy of a trained proxy's folder
    rewards     what a script wrote for the proxy's rewards of the test responses
    gold        gold's test rewards
    texts       the test responses

Every file that is written gets the run file that its script would have written, so that what gives
a fault away is its content. P test prompts, K responses each.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np

from rmood.diagnosis import scale
from rmood.errors import UserError
from rmood.files.paths import dataset_paths
from rmood.files.provenance import read_run_file, sha256
from rmood.files.rows import read_json, write_json, write_jsonl
from rmood.files.tables import (
    join_conversations,
    read_pairs,
    read_prompts,
    read_responses,
    read_rewards,
)

TOY_TEST_PROMPTS = 1200  # the first DIAGNOSED for evaluate.py, the others for the referee
DIAGNOSED = 500
TOY_RESPONSES = 4  # of each test prompt
REAL_WORDS = 80  # of a real response, at most: a core reads some 400 tokens a second at 135M


# ---- worlds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The files of a dataset, and a folder for what is made from them."""

    name: str  # "toy" or "real"
    dataset: str
    work: Path
    seed: int
    proxy: str = ""  # real: the folder of the trained proxy

    @property
    def paths(self) -> dict[str, str]:
        return dataset_paths(self.dataset)


def toy_world(work: Path, seed: int) -> World:
    """The toy world with this seed, built below `work` unless it is there; some six minutes.

    RMOOD_HOME is that folder from here on.
    """
    home = work / f"toy-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["RMOOD_HOME"] = str(home.resolve())
    sampling = ["--max-tokens", "56", "--seed", seed]
    test_prompts = ["--test-prompts", TOY_TEST_PROMPTS]
    responses = ["--num-responses", TOY_RESPONSES]
    stages = [
        ["examples/toyworld.py", "--seed", seed, *test_prompts],
        ["sample.py", *sampling],
        ["sample.py", "--split", "test", *responses, *sampling],
        ["label.py"],
        ["label.py", "--split", "test"],
        ["preprocess.py"],
    ]
    for number, (script, *flags) in enumerate(stages, 1):
        done = home / f"stage-{number}-is-done"
        if not done.exists():
            say(f"building the toy world of seed {seed}: {script}")
            run_apart(script, "--dataset", "toy", *flags)
            done.touch()
    return World("toy", "toy", home, seed)


def real_world(work: Path, seed: int, model: str) -> World:
    """The dataset that the trained proxy in the folder `model` was trained on."""
    path = Path(model, "run.json")
    if not path.is_file():
        raise UserError(f"{model}: no run.json there: pass a folder that train.py wrote")
    dataset = read_json(str(path))["config"]["dataset"]
    folder = work / f"real-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return World("real", dataset, folder, seed, model)


def run_apart(script: str, *arguments) -> None:
    """Run a script of the repository in a process of its own; UserError where it fails."""
    words = [str(argument) for argument in arguments]
    command = [sys.executable, str(REPOSITORY / script), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script} {' '.join(words)}: {done.stderr.strip()[-1500:]}")


@contextlib.contextmanager
def quietly(log: Path) -> Iterator[None]:
    """Inside, what is printed goes to the end of this file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield


def say(*words) -> None:
    print(*words, file=sys.stderr, flush=True)


# ---- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How a proxy is trained: train.py on pairs of the toy world.

    pairs: so many of them, drawn at random; 0: all.
    change: (rows of the pairs file, Bench) -> rows.
    patch: () -> a context in which functions of train.py are replaced.
    with_gold: the pairs say what gold gave them, and where they came from.
    """

    flags: str = ""
    pairs: int = 1200
    change: Callable | None = None
    patch: Callable | None = None
    with_gold: bool = True
    seed: int = 0

    def fingerprint(self) -> str:
        """Changes with the settings; a training is done again where it differs."""
        plan = asdict(self) | {"change": name_of(self.change), "patch": name_of(self.patch)}
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def name_of(function: Callable | None) -> str:
    """What the function is called, with the arguments of a functools.partial."""
    if isinstance(function, functools.partial):
        return f"{function.func.__name__} {function.args} {function.keywords}"
    return getattr(function, "__name__", "")


@dataclass
class Bench:
    """What planting one case takes."""

    world: World
    trainings: dict[str, Training]
    folder: Path  # for the files of this case
    rng: random.Random

    def proxy(self, name: str) -> str:
        """The folder of a trained proxy, which is trained now unless it is there.

        In the real world a name that has no training is the proxy that was given.
        """
        if self.world.proxy and name not in self.trainings:
            return self.world.proxy
        folder = self.world.work / "trained" / name
        training = self.trainings[name]
        plan = folder / "plan.txt"
        if not plan.exists() or plan.read_text() != training.fingerprint():
            shutil.rmtree(folder, ignore_errors=True)
            train_proxy(self.world, training, folder, name)
            plan.write_text(training.fingerprint())
        return str(folder / "rm")

    def other(self, name: str) -> str:
        """Another proxy than the case's: in the real world the start with the proxy's head."""
        if not self.world.proxy:
            return self.proxy(name)
        target = self.folder / "start-with-head"
        proxy = self.proxy(name)
        copy_model(proxy, target)
        replace_backbone(target, start_of(self.world))
        return str(target)


def train_proxy(world: World, training: Training, folder: Path, name: str) -> None:
    """Train into folder/rm, in this process; folder/truth.json says how good it is."""
    import train

    rng = random.Random(f"{world.seed} {name}")
    rows = short_pairs(world) if world.proxy else read_lines(world.paths["pairs"])
    if training.pairs:
        rows = [rows[i] for i in sorted(rng.sample(range(len(rows)), training.pairs))]
    if training.change:
        rows = training.change(rows, rng, world)
    data = folder / "pairs.jsonl"
    dataset = world.dataset
    if training.with_gold:
        write_pairs(data, rows, world)
    else:
        for row in rows:
            row.pop("chosen_reward", None)
            row.pop("rejected_reward", None)
            row.pop("index", None)
        write_jsonl(str(data), rows)
        dataset = "without-gold"

    files = ["--dataset", dataset, "--model-name", start_of(world), "--data-path", str(data)]
    files += ["--output-dir", str(folder / "rm"), "--overwrite"]
    seed = ["--seed", str(1000 * world.seed + training.seed)]
    argv = ["train.py", *files, *seed, "--batch-size", "32", *training.flags.split()]
    say(f"training {name}: {len(rows):,} pairs, {training.flags}")
    patch = training.patch() if training.patch else contextlib.nullcontext()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quietly(folder / "log.txt"))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        # an interrupt ends the benchmark at once
        stack.enter_context(mock.patch.object(train.distributed, "catch_signals", list))
        stack.enter_context(patch)
        train.main()
    if not world.proxy:
        truth = referee(world, str(folder / "rm"), str(data))
        write_json(str(folder / "truth.json"), truth)


def start_of(world: World) -> str:
    """The folder of the model that the world's proxies are trained from."""
    if world.proxy:
        return read_json(str(Path(world.proxy, "run.json")))["config"]["model_name"]
    return world.paths["sft"]


def short_pairs(world: World) -> list[dict]:
    """The short pairs of the real world, as rows of a pairs file."""
    rows = []
    for pair in read_pairs(world.paths["pairs"]):
        if is_short(pair.chosen[-1]["content"]) and is_short(pair.rejected[-1]["content"]):
            row = {"chosen": pair.chosen, "rejected": pair.rejected, "index": pair.index}
            rewards = {"chosen_reward": pair.chosen_reward, "rejected_reward": pair.rejected_reward}
            rows.append(row | rewards)
    return rows


def is_short(text: str) -> bool:
    return len(text.split()) <= REAL_WORDS


def read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_pairs(path: Path, rows: list[dict], world: World) -> None:
    """As preprocess.py would: with a run file that names what the pairs were made from."""
    write_jsonl(str(path), rows)
    made_from = read_run_file(world.paths["pairs"]) or {}
    write_run_beside(path, made_from | {"pairs": len(rows)})


def write_run_beside(path: Path | str, facts: dict, **inputs: Path | str) -> None:
    """The run file of `path` with these facts; inputs: role -> file it was made from."""
    facts = dict(facts)
    if inputs:
        facts["inputs"] = {
            role: {"path": str(file), "sha256": sha256(str(file))} for role, file in inputs.items()
        }
    facts["output"] = {"path": str(path), "sha256": sha256(str(path))}
    write_json(f"{path}.run.json", facts)


# ---- the referee: how good is a proxy, on prompts that evaluate.py does not see? ---------------


def referee(world: World, model: str, pairs: str) -> dict:
    """match, scale and bits on the prompts from DIAGNOSED on, and train_bits on 300 pairs."""
    prompts = read_prompts(world.paths["test_prompts"])[DIAGNOSED:]
    responses = read_responses(world.paths["test_responses"])[DIAGNOSED:]
    gold = np.array(read_rewards(world.paths["test_rewards"]))[DIAGNOSED:]
    known = random.Random(0).sample(read_pairs(pairs), min(300, len(read_pairs(pairs))))
    scorer = scorer_of(model)
    rewards = np.array(scorer.score(join_conversations(prompts, responses)))
    own = np.array(scorer.score([[pair.chosen, pair.rejected] for pair in known]))
    found = scale.scale_numbers(*scale.towards_gold(rewards, gold))
    train = scale.scale_numbers(own[:, 0] - own[:, 1], np.arange(len(known)))
    return {
        "match": found["right"],
        "scale": found["scale"],
        "bits": found["bits"],
        "train_bits": train["bits"],
        "train_match": train["right"],
    }


def is_healthy(truth: dict, asked_for: bool = False) -> bool:
    """By the referee: right in 80% of the pairs, calibrated, and not memorised.

    asked_for: the scale is what the settings ask for (soft labels, smoothing), so it may be wide.
    """
    low, high = scale.CALIBRATED
    calibrated = asked_for or low <= truth["scale"] <= high
    return calibrated and truth["match"] >= 0.8 and truth["train_bits"] < 2 * truth["bits"]


def scorer_of(model: str, dtype: str = "float32"):
    """A Scorer of the model. It joins the process group, or begins one that train.py or evaluate.py
    will end: score with it before they run again."""
    from rmood import distributed
    from rmood.scoring import load_scorer

    return load_scorer(model, distributed.start(), dtype)


# ---- files of a case ---------------------------------------------------------------------------


@dataclass
class Files:
    """The first P test prompts with K responses each, as files of their own."""

    prompts: Path
    responses: Path
    gold: Path
    conversations: list = field(default_factory=list)  # P rows of K


def write_test_files(
    bench: Bench, size: int, responses_each: int, change_texts: Callable | None = None
) -> Files:
    """The files of `size` test prompts, with run files that say what they are made from.

    change_texts: (P rows of K texts, (P, K) gold, rng) -> both.
    """
    paths = bench.world.paths
    size = min(size or DIAGNOSED, DIAGNOSED)
    places = test_places(bench.world, responses_each)[:size]
    all_prompts = read_prompts(paths["test_prompts"])
    all_texts = read_responses(paths["test_responses"])
    all_gold = read_rewards(paths["test_rewards"])
    prompts = [all_prompts[row] for row, _ in places]
    texts = [[all_texts[row][column] for column in columns] for row, columns in places]
    gold = np.array([[all_gold[row][column] for column in columns] for row, columns in places])
    if change_texts:
        texts, gold = change_texts(texts, gold, bench.rng)

    files = Files(
        bench.folder / "prompts.json", bench.folder / "responses.json", bench.folder / "gold.json"
    )
    write_json(str(files.prompts), [{"messages": prompt} for prompt in prompts])
    write_json(
        str(files.responses),
        [{f"response_{i}": text for i, text in enumerate(row, 1)} for row in texts],
    )
    sampled = run_of_places(read_run_file(paths["test_responses"]) or {}, places)
    write_run_beside(files.responses, sampled, prompts=files.prompts)
    write_rewards(files.gold, gold, read_run_file(paths["test_rewards"]) or {}, files)
    files.conversations = join_conversations(prompts, texts)
    return files


def sample_test_files(bench: Bench, size: int, flags: tuple[str, ...]) -> Files:
    """The first `size` test prompts, sampled by sample.py with these flags and labelled by gold.

    {template} in a flag is the path of the start model's chat template without its newlines.
    """
    paths = bench.world.paths
    files = Files(
        bench.folder / "prompts.json", bench.folder / "responses.json", bench.folder / "gold.json"
    )
    prompts = read_prompts(paths["test_prompts"])[:size]
    if not files.gold.exists():
        template = bench.folder / "other.jinja"
        own = Path(paths["sft"], "chat_template.jinja").read_text(encoding="utf-8")
        template.write_text(own.replace("<|im_end|>\\n", "<|im_end|>"), encoding="utf-8")
        write_json(str(files.prompts), [{"messages": prompt} for prompt in prompts])
        dataset = ["--dataset", bench.world.dataset, "--prompts-path", files.prompts]
        words = [flag.format(template=template) for flag in flags]
        most = [] if "--max-tokens" in words else ["--max-tokens", "56"]
        run_apart("sample.py", *dataset, "--target-path", files.responses, *most, *words)
        both = ["--responses-path", files.responses, "--target-path", files.gold]
        run_apart("label.py", *dataset, *both)
    files.conversations = join_conversations(prompts, read_responses(str(files.responses)))
    return files


def test_places(world: World, responses_each: int) -> list[tuple[int, list[int]]]:
    """The test responses that are read: (row of the prompt, K places in it).

    In the real world the first K short ones of each prompt that has K of them.
    """
    places = []
    for row, texts in enumerate(read_responses(world.paths["test_responses"])):
        read = [i for i, text in enumerate(texts) if not world.proxy or is_short(text)]
        if len(read) >= responses_each:
            places.append((row, read[:responses_each]))
    return places


def run_of_places(sampled: dict, places: list[tuple[int, list[int]]]) -> dict:
    """A run file of sample.py, of these responses alone: how each of them ended."""
    if "finish" not in sampled:
        return sampled
    words = [row.split() for row in sampled["finish"]]
    rows = [[words[row][column] for column in columns] for row, columns in places]
    reasons = Counter(reason for row in rows for reason in row)
    finish = [" ".join(row) for row in rows]
    config = sampled.get("config", {}) | {"num_responses": len(places[0][1])}
    return sampled | {"finish": finish, "finish_reasons": dict(reasons), "config": config}


def write_rewards(path: Path, rewards: np.ndarray, made_by: dict, files: Files) -> None:
    """(P, K) rewards with the run file of label.py; made_by: its settings and facts."""
    write_json(str(path), rewards.tolist())
    write_run_beside(path, made_by, prompts=files.prompts, responses=files.responses)


@dataclass
class Scored:
    """A proxy's rewards of the test responses, before a case changes them."""

    own: np.ndarray  # (P, K) as label.py would write them
    scorer: object
    conversations: list
    bench: Bench

    def by(self, model: str) -> np.ndarray:
        """(P, K) rewards that another model gives the same responses."""
        return np.array(scorer_of(model).score(self.conversations))


def write_proxy_rewards(
    bench: Bench, model: str, files: Files, change: Callable, dtype: str = "float32"
) -> Path:
    """The path of the rewards of the proxy in the folder `model`, changed: (Scored) -> (P, K)."""
    from rmood.tokenization import template_sha256

    scorer = scorer_of(model, dtype)
    own = np.array(scorer.score(files.conversations))
    facts = {"template_sha256": template_sha256(scorer.tokenizer)}
    changed = np.asarray(change(Scored(own, scorer, files.conversations, bench)))
    settings = {"model_name": model, "dtype": dtype, "max_length": 2048}
    path = bench.folder / "rewards.json"
    write_rewards(path, changed, facts | {"config": settings, "work": settings | facts}, files)
    return path


# ---- a copy of a model's folder, tampered with -------------------------------------------------


def copy_model(model: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("tensorboard", "checkpoints", "epoch-*")
    shutil.copytree(model, target, ignore=ignored)


def change_weights(folder: Path | str, change: Callable) -> None:
    """Rewrite every tensor of the folder: (name, tensor) -> tensor."""
    from safetensors.torch import load_file, save_file

    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors = load_file(path)
        changed = {name: change(name, tensor) for name, tensor in tensors.items()}
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in changed.items()},
            path,
            {"format": "pt"},
        )


def replace_backbone(folder: Path | str, other: str) -> None:
    """Give the model in `folder` the backbone of another, and keep its head."""
    from safetensors.torch import load_file

    theirs = {}
    for path in sorted(Path(other).glob("*.safetensors")):
        theirs |= load_file(path)
    missing = []

    def change(name, tensor):
        if name == "score.weight":
            return tensor
        if name not in theirs:
            missing.append(name)
            return tensor
        return theirs[name].to(tensor.dtype)

    change_weights(folder, change)
    if missing:
        raise UserError(f"{other}: no weight {missing[0]}: pass a model of the same kind")


def change_json(path: Path, change: Callable) -> None:
    """Rewrite a JSON file: (what it holds) -> what it is to hold."""
    write_json(str(path), change(read_json(str(path))))


# ---- faults of train.py: functions of it replaced ----------------------------------------------


@contextlib.contextmanager
def replaced(name: str, make: Callable) -> Iterator[None]:
    """Inside, train.py uses make(function) instead of its function of this name."""
    modules = [
        sys.modules[module] for module in ("train", "rmood.pairset") if module in sys.modules
    ]
    users = [module for module in modules if hasattr(module, name)]
    if not users:
        raise UserError(f"planting.py: train.py has no {name} to replace: mend the fault")
    with contextlib.ExitStack() as stack:
        for module in users:
            function = getattr(module, name)
            stack.enter_context(mock.patch.object(module, name, make(function)))
        yield


def rows_changed(change: Callable):
    """The token ids that are trained on: (token ids, tokenizer) -> token ids."""

    def make(encode_rendered):
        def encode_changed(conversations, tokenizer, *names):
            rows = encode_rendered(conversations, tokenizer, *names)
            return [array("i", change(row, tokenizer)) for row in rows]

        return encode_changed

    return replaced("encode_rendered", make)


def pad_is_scored():
    rng = random.Random(0)

    def with_pads(row, tokenizer):
        return [*row, *[tokenizer.pad_token_id] * rng.randint(1, 8)]

    return rows_changed(with_pads)


def token_before_eos_is_scored():
    return rows_changed(lambda row, tokenizer: row[:-2])


def rows_are_cut():
    return rows_changed(lambda row, tokenizer: row[:30])


def prompt_is_dropped():
    def answer_of(row, tokenizer):
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        return row[len(row) - 1 - row[::-1].index(start) :]

    return rows_changed(answer_of)


def eos_is_written_twice():
    return rows_changed(lambda row, tokenizer: [*row, tokenizer.eos_token_id])


def no_template():
    from rmood.tokenization import encode

    def make(encode_rendered):
        def encode_plain(conversations, tokenizer, *names):
            texts = [plain_text(conversation) for conversation in conversations]
            return [array("i", row) for row in encode(texts, tokenizer)]

        return encode_plain

    return replaced("encode_rendered", make)


def plain_text(conversation: list[dict]) -> str:
    """A conversation without chat template, as a script that forgets it would join it."""
    return "\n".join(message["content"] for message in conversation if message["content"])


def backbone_is_frozen():
    import torch

    def make(build_optimizer):
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

        return of_the_head

    return replaced("build_optimizer", make)


def pairs_are_centred():
    """Add (r_chosen + r_rejected)^2 to the loss of each pair."""

    def make(pair_losses):
        def with_centred_pairs(rewards, *arguments):
            return pair_losses(rewards, *arguments) + rewards.sum(dim=1) ** 2

        return with_centred_pairs

    return replaced("pair_losses", make)


def rewards_are_squashed_in_loss():
    """Bradley-Terry of sigmoid(reward); the model that is saved has no sigmoid."""

    def make(pair_losses):
        def of_squashed(rewards, *arguments):
            return pair_losses(rewards.sigmoid(), *arguments)

        return of_squashed

    return replaced("pair_losses", make)


def schedule_counts_micro_batches():
    """Each step takes the schedule eight steps on, to its end and no further."""

    def make(learning_rate):
        def eight_times_as_fast(step, total_steps, *arguments):
            return learning_rate(min(8 * step, total_steps), total_steps, *arguments)

        return eight_times_as_fast

    return replaced("learning_rate", make)


def dropout_is_on():
    import torch

    def drop(module, arguments, output):
        return torch.nn.functional.dropout(output, 0.3, module.training)

    def make(meta_reward_model):
        def with_dropout(*arguments, **options):
            model, source = meta_reward_model(*arguments, **options)
            model.config.attention_dropout = 0.3
            for layer in model.backbone.layers:
                layer.mlp.register_forward_hook(drop)
            return model, source

        return with_dropout

    return replaced("meta_reward_model", make)


def positions_run_on():
    """A packed pass is given the positions 0, 1, 2 ...: they do not restart at each response."""
    import torch

    def make(layouts):
        def packed(groups):
            batch = layouts["packed"](groups)
            tokens = batch.input_ids.shape[1]
            return dataclasses.replace(batch, position_ids=torch.arange(tokens)[None])

        return layouts | {"packed": packed}

    return replaced("LAYOUTS", make)


def same_batches():
    """Every step has one of the same four batches."""

    def make(epoch_order):
        def four_over_and_over(pairs, batch_size, seed, epoch):
            steps = epoch_order(pairs, batch_size, seed, 0)
            return [steps[i % 4] for i in range(len(steps))]

        return four_over_and_over

    return replaced("epoch_order", make)
