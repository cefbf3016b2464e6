"""What a model, its run and its training pairs say: the numbers that take the model itself.

One packed scoring of each row is shared by all that read it. What cannot be measured is listed with
its reason, as {"what": a number of docs/metrics.md, "why": words}: silence is not health.

P prompts, K responses each; B training pairs
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files.paths import dataset_paths
from ..files.provenance import read_run_file
from ..files.tables import (
    Conversation,
    Pair,
    local_path,
    read_pairs,
    read_prompts,
    read_responses,
    read_rewards,
)
from ..metrics import wilson
from ..scoring import Scorer
from ..tokenization import render, template_facts
from . import probes
from .inputs import PathLike, draw, gold_cut, read_run, run_of_responses, run_of_rewards
from .measures import (
    bf16_share,
    identical_responses,
    longest_share,
    resolution,
    train_numbers,
)
from .pairs import (
    cue_numbers,
    equal_sides,
    label_noise,
    not_of_their_row,
    repeats_prompt,
    text_shift,
)
from .scale import (
    FEWEST_PROMPTS,
    Estimate,
    learning_word,
    loss_at,
    scale_numbers,
    share,
    share_of_rows,
    towards_gold,
)

NOISE_RESPONSES = 48  # about so many are scored in float32 and in bf16, of 8 prompts or more
TEXT_PAIRS = 2000  # training pairs whose texts are read for cues and for words
SAMPLING = ("model_name", "temperature", "top_p", "max_tokens")  # flags of sample.py
WHOLE_SAMPLE = 500  # training pairs that a run scored after training are read again, all of them
NO_SYSTEM_TURN = "\0"  # no system message can be this
FEW_SYSTEM_MESSAGES = 10  # of more, each is a text of its own prompt


def probe(
    scorer: Scorer,
    conversations: list[list[Conversation]],
    rewards: np.ndarray,
    gold: np.ndarray,
    own: np.ndarray | None = None,
    *,
    numbers: dict,
    full: bool = True,
    pairs: PathLike | None = None,
    num_samples: int = 200,
    seed: int = 0,
    sampled: dict,
    gold_run: dict,
) -> tuple[dict, list[dict]]:
    """(numbers, what was not measured and why).

    rewards, gold: (P, K). own: (P, K) what the model gives, where `rewards` are finished ones that
    it is said to have given. numbers: of the comparison. sampled: the run file of the responses, {}
    where it is not known; gold_run: that of gold's rewards. full: also plain texts and a linear
    probe of the start model, which cost about as much as all the rest.
    """
    found: dict = {}
    missing: list[dict] = []
    some = conversations[: max(8, NOISE_RESPONSES // len(conversations[0]))]
    found |= probes.rounding_numbers(scorer, some)
    responses = [[one[-1]["content"] for one in row] for row in conversations]
    same = identical_responses(responses)
    found |= resolution(rewards, gold, found["score_noise"], same)
    found["scored_in"] = probes.backbone_dtype(scorer)
    if own is not None:
        found["model"] = Path(scorer.name).name
        noise = found["reward_noise"]
        found |= probes.explain_rewards(scorer, conversations, rewards, own, noise)
        difference = float(np.sqrt(np.square(rewards - own).mean()))
        is_rounded = 0.3 * noise < difference < 3 * noise  # as rounding differs, not as models do
        by_file = is_rounded or bf16_share(rewards) == 1
        if found["scored_in"] == "float32" and by_file:
            found["scored_in"] = "bf16"  # a file of rewards computed in bf16

    folder = scorer.name
    if not Path(folder, "config.json").is_file():
        why = f"{folder} is not a folder on this machine, with the run that made it"
        names = ("train_bits", "label_noise", "backbone_moved", "probe_match", "recorded_gap")
        return found, [lacking(name, why) for name in names]
    found |= probes.config_numbers(folder, scorer, conversations[0][0])
    run = read_run(folder)
    stages = {"training": run, "scoring": template_facts(scorer.tokenizer)}
    found |= template_numbers(stages)

    path, why = pairs_of_run(pairs, run)
    if not path:
        names = ("train_bits", "label_noise", "duplicate_share", "probe_match", "recorded_gap")
        missing += [lacking(name, why) for name in names]
        known = []
    else:
        known = read_pairs(path)
        files = files_behind(path, run)
        behind_pairs = run_of_responses(files.get("responses", ""))
        found |= sampling_template([behind_pairs, sampled], run, stages)
        found |= sampling_numbers_differ(behind_pairs, sampled)
        found |= gold_models(run_of_rewards(files.get("rewards")), gold_run)
        of_pairs, not_there = pair_numbers(known, files, run, conversations, scorer.tokenizer)
        found |= of_pairs
        found["pairs_are_new"] = pairs_are_new(known, read_run_file(path) or {}, run)
        some_pairs = draw(known, TEXT_PAIRS, seed)
        found |= cue_numbers(some_pairs, responses, gold) | text_shift(some_pairs, conversations)
        missing += not_there
        drawn, is_recorded = draw_as_recorded(known, run, num_samples, seed, pairs is not None)
        reading, of_drawn, otherwise = probes.training_reading(scorer, drawn, plain=full)
        found |= reading | train_numbers(of_drawn, [pair.prompt_key for pair in drawn])
        if is_recorded:
            found |= recorded_loss(of_drawn, otherwise, run, found["score_noise"])
        if "recorded_gap" not in found:
            why = "run.json has no loss of these training pairs, scored after training"
            missing.append(lacking("recorded_gap", why))
            found["other_way_fits"] = 1.0
        # of weights that were kept from an earlier step the last steps say nothing
        is_last = run.get("step") in (None, numbers.get("steps"))
        if "last_accuracy_low" in numbers and pairs is None and is_last:
            found["below_steps"] = numbers["last_accuracy_low"] - found["train_right_high"]
        held_out = numbers if own is None else scale_numbers(*towards_gold(own, gold))
        found["learning_word"] = "cannot tell"
        if min(found["train_prompts"], held_out["scale_prompts"]) >= FEWEST_PROMPTS:
            found["learning_word"] = learning_word(
                Estimate.of(found, "train_bits"), Estimate.of(held_out, "bits")
            )

    start, why = start_folder(run)
    if not start:
        missing += [lacking(name, why) for name in ("backbone_moved", "probe_match")]
        return found, missing
    found |= probes.moved_weights(folder, start)
    if not full:
        missing.append(lacking("probe_match", "a linear probe takes --probes full"))
    elif known:
        found |= probes.linear_probe(scorer, start, drawn, conversations, rewards, gold)
    return found, missing


def lacking(what: str, why: str) -> dict:
    return {"what": what, "why": why}


# ---- the training pairs --------------------------------------------------------------------------


def pairs_of_run(pairs: PathLike | None, run: dict) -> tuple[str, str]:
    """The path of the training pairs, or "" and why there is none."""
    if pairs:
        return local_path(str(pairs)), ""
    if not run["config"]:
        return "", "the model's folder has no run.json: pass its training pairs"
    kept = run.get("inputs", {}).get("pairs", {})
    for path in (
        run["config"].get("data_path", ""),
        kept.get("path", ""),
        kept.get("absolute", ""),
    ):
        if path and Path(path).exists():
            return path, ""
    return "", f"{run['config'].get('data_path')} is no longer there: pass the training pairs"


def files_behind(pairs: str, run: dict) -> dict[str, str]:
    """Role -> file that the pairs were made from: by their run file, or else the dataset's."""
    dataset = run["config"].get("dataset")
    files = dataset_paths(dataset) if dataset else {}
    made_from = (read_run_file(pairs) or {}).get("inputs", {})
    return files | {role: file["path"] for role, file in made_from.items()}


def pair_numbers(
    pairs: list[Pair],
    files: dict[str, str],
    run: dict,
    conversations: list[list[Conversation]],
    tokenizer,
) -> tuple[dict, list[dict]]:
    """What is wrong with the training pairs, and what of that could not be measured.

    label_noise, with_gold, least_loss      pairs.label_noise; label_noise_low and _high: its 95%
                                            interval (Wilson)
    duplicate_share, duplicate_share_low    test prompts that are training prompts too
    train_longest_share, ..._low, ..._high  of their texts: measures.longest_share
    train_longer_wins, ..._low, ..._high    share of the pairs whose chosen response is the longer
    equal_sides, foreign_share              pairs.equal_sides, pairs.not_of_their_row
    train_twin_share, ..._low, ..._high     pairs of identical responses behind the pairs
    echo_share, echo_share_low, train_echo_share   share of the test responses, and of the chosen
                                            ones, that begin with their prompt
    dropped_share, max_length               pairs left out because they are longer
    unknown_system_share, system_words      test prompts whose system message no training pair has;
                                            only where these have ten different ones or fewer
    truncated_share                         responses behind the pairs that end at --max-tokens
    train_gold_cut                          of what gold read for their labels: inputs.gold_cut
    """

    def read_if_there(role: str, read):
        path = files.get(role, "")
        return read(path) if Path(path).is_file() else None

    missing = []
    responses = read_if_there("responses", read_responses)
    gold = read_if_there("rewards", read_rewards)
    numbers = label_noise(pairs, None, responses, gold)
    if numbers:
        count = numbers["with_gold"]
        low, high = wilson(numbers["label_noise"] * count, count)
        numbers |= {"label_noise_low": low, "label_noise_high": high}
    else:
        missing.append(lacking("label_noise", "gold's rewards of the training pairs are not known"))

    numbers |= equal_sides(pairs)
    echoes = np.array([[repeats_prompt(one) for one in row] for row in conversations])
    of_test = share_of_rows(echoes)
    numbers |= {"echo_share": of_test.value, "echo_share_low": of_test.low}
    numbers["train_echo_share"] = float(np.mean([repeats_prompt(pair.chosen) for pair in pairs]))
    if responses and len(responses[0]) > 1:
        prompts = read_if_there("prompts", read_prompts)
        if prompts and len(prompts) != len(responses):  # not those of these responses any more
            prompts = None
        numbers |= not_of_their_row(pairs, prompts, responses)
        same = identical_responses(responses)
        numbers |= share_of_rows(same).as_numbers("train_twin_share")
    training_prompts = {pair.prompt_key for pair in pairs}
    test_prompts = [Pair(chosen=row[0], rejected=row[1]).prompt_key for row in conversations]
    known = np.array([prompt in training_prompts for prompt in test_prompts], dtype=float)
    duplicates = share(known, np.arange(len(known)))
    numbers |= {"duplicate_share": duplicates.value, "duplicate_share_low": duplicates.low}
    numbers |= system_numbers(pairs, conversations, tokenizer)
    texts = [[side[-1]["content"] for side in (pair.chosen, pair.rejected)] for pair in pairs]
    # a response of a group is in several pairs
    once = {(pair.prompt_key, text) for pair, both in zip(pairs, texts) for text in both}
    numbers |= longest_share([[text] for _, text in once]).as_numbers("train_longest_share")
    sizes = np.array([[len(text) for text in both] for both in texts])
    longer = (np.sign(sizes @ [1, -1]) + 1) / 2
    _, prompt = np.unique([pair.prompt_key for pair in pairs], return_inverse=True)
    numbers |= share(longer, prompt).as_numbers("train_longer_wins")

    if "pairs" in run and "held_out_pairs" in run:
        held_out = run["held_out_pairs"] if run["config"].get("eval_share") else 0
        numbers["dropped_share"] = max(0.0, 1 - (run["pairs"] + held_out) / len(pairs))
        numbers["max_length"] = run["config"]["max_length"]
    sampled = run_of_responses(files.get("responses", ""))
    if "truncated_share" in sampled:
        numbers["truncated_share"] = sampled["truncated_share"]
    numbers |= {f"train_{name}": value for name, value in gold_cut(files.get("rewards")).items()}
    return numbers, missing


def pairs_are_new(pairs: list[Pair], made: dict, run: dict) -> float:
    """1 where the run's accuracies of epoch 1 are of new prompts like any other: each prompt comes
    in one step, no other file was mixed in, and no pair was left out for its small margin.

    made: the run file of the pairs.
    """
    steps = {
        number if pair.group is None else ("group", pair.group) for number, pair in enumerate(pairs)
    }
    prompts = {pair.prompt_key for pair in pairs}
    chosen = made.get("config", {}).get("min_margin") or run["config"].get("mix")
    return float(len(prompts) > 0.95 * len(steps) and not chosen)


def system_numbers(pairs: list[Pair], conversations: list[list[Conversation]], tokenizer) -> dict:
    absent = "" if is_rendered_alike(tokenizer) else NO_SYSTEM_TURN
    trained = {_system_message(pair.chosen, absent) for pair in pairs}
    if len(trained) > FEW_SYSTEM_MESSAGES:
        return {}
    tested = [_system_message(row[0], absent) for row in conversations]
    unknown = [message for message in tested if message not in trained]
    if not unknown:
        return {"unknown_system_share": 0.0}
    words = f"{_shown(unknown[0])}; training pairs: {', '.join(map(_shown, sorted(trained)[:3]))}"
    return {"unknown_system_share": len(unknown) / len(tested), "system_words": words}


def is_rendered_alike(tokenizer) -> bool:
    """Does the model read the same of an empty system turn as of none?"""
    question = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    empty = [{"role": "system", "content": ""}, *question]
    return render(empty, tokenizer) == render(question, tokenizer)


def _system_message(conversation: Conversation, absent: str) -> str:
    first = conversation[0]
    return first["content"].strip() if first["role"] == "system" else absent


def _shown(text: str) -> str:
    if text == NO_SYSTEM_TURN:
        return "no system turn"
    return repr(text if len(text) <= 40 else f"{text[:37]}...") if text else "an empty one"


def draw_as_recorded(
    pairs: list[Pair], run: dict, count: int, seed: int, other_pairs: bool
) -> tuple[Sequence[Pair], bool]:
    """Training pairs, and whether they are exactly those that the run scored at its end.

    So many of them are drawn, where run.json names some: of those. These are taken whole where they
    are 500 or fewer, train.py's default, and at least 200 were asked for, since only the losses of
    the same pairs can be compared. other_pairs: the caller named the pairs, which need not be the
    run's.
    """
    recorded = run.get("train_sample") or []
    if other_pairs or not recorded or max(recorded) >= len(pairs):
        return draw(pairs, count, seed), False
    sample = [pairs[number] for number in recorded]
    if count >= 200 and len(sample) <= WHOLE_SAMPLE:
        return sample, True
    drawn = draw(sample, count, seed)
    return drawn, len(drawn) == len(sample)


def recorded_loss(read: np.ndarray, otherwise: np.ndarray, run: dict, score_noise: float) -> dict:
    """Does the model read its training pairs as its run did, when that ended?

    read, otherwise: (B, 2) rewards of the pairs that the run scored, chosen first, and those by
    another way to read them. {} where the run recorded no loss of them.

    recorded_gap     |loss now - loss recorded|, over what rounding can make of it. The loss of a
                     pair changes by sigmoid(-m) for each nat of its margin m, so, by Cauchy and
                     Schwarz, the mean loss by score_noise times the rms of sigmoid(-m) at most
    recorded_words   both losses, in words
    other_way_fits   1 where the other way's loss is nearer to the recorded one, by half of the
                     distance at least: only then may the model have been trained in that way
    """
    recorded = _recorded_train(run).get("loss")
    if recorded is None:
        return {}
    # the head of a calibrated model was multiplied after training
    factor = run.get("calibration", {}).get("applied_in_all", 1.0)
    margins = (read[:, 0] - read[:, 1]) / factor
    now = float(loss_at(1.0, margins).mean())
    slopes = 1 - np.exp(-loss_at(1.0, margins))  # sigmoid(-m)
    rounding = score_noise / factor * float(np.sqrt(np.square(slopes).mean()))
    left = abs(float(loss_at(1 / factor, otherwise[:, 0] - otherwise[:, 1]).mean()) - recorded)
    return {
        "recorded_gap": abs(now - recorded) / max(rounding, 1e-3),  # compared to three digits
        "recorded_words": "when its run ended, the loss of the same training pairs was "
        f"{recorded:.3f}, now it is {now:.3f}",
        "other_way_fits": float(left <= abs(now - recorded) / 2),
    }


def _recorded_train(run: dict) -> dict:
    """What the run measured of its training pairs with the weights of this folder; {} where that is
    not known, as for a model kept in the middle of an epoch (best/)."""
    results = list(run.get("results", {}).values())
    groups = run.get("groups", run.get("pairs", 0))
    steps = -(-groups // run["config"].get("batch_size", 1))  # of an epoch
    epochs_begun = -(-run["step"] // steps) if "step" in run and steps else len(results)
    if not results or epochs_begun != len(results):
        return {}
    return results[-1].get("train", {})


# ---- templates, and where training began ---------------------------------------------------------


def template_numbers(stages: dict[str, dict]) -> dict:
    """template_differs: 1 where training and scoring render otherwise; {} where that is not known.

    stages: "training" and "scoring" -> facts with the hash of what the template renders, or, in run
    files of older versions, of its source alone.
    """
    differs, words = _differ(stages, "training", "scoring")
    return {} if differs is None else {"template_differs": differs, "template_words": words}


def sampling_template(sampled: list[dict], run: dict, stages: dict[str, dict]) -> dict:
    """The same between sampling and scoring, where the start model sampled the responses.

    sampled: the run files of the responses behind the training pairs, and of the test responses; {}
    for one that is not there.
    """
    numbers = {}
    for one in sampled:
        sampler = one.get("config", {}).get("model_name") or ""
        if Path(sampler).name != Path(run["config"].get("model_name") or "").name:
            continue  # by name: folders move
        differs, words = _differ(stages | {"sampling": one}, "sampling", "scoring")
        if differs:
            return {"sampling_template_differs": 1.0, "template_words": words}
        if differs is not None:
            numbers["sampling_template_differs"] = 0.0
    return numbers


def sampling_numbers_differ(behind_pairs: dict, sampled: dict) -> dict:
    """sampling_differs: 1 where the run files of the training responses and of the test responses
    name another model or other settings (sampling_words); {} without both."""
    settings = [one.get("config", {}) for one in (behind_pairs, sampled)]
    if not all("temperature" in one for one in settings):
        return {}
    words = []
    for name in SAMPLING:
        train, test = (Path(str(one.get(name))).name for one in settings)
        if train != test:
            words.append(f"--{name.replace('_', '-')} {train} for training, {test} for the test")
    return {"sampling_differs": float(bool(words)), "sampling_words": "; ".join(words)}


def gold_models(behind_pairs: dict, of_test: dict) -> dict:
    """gold_differs: 1 where the run files of gold's training and test rewards name two models
    (gold_words); {} where one of them names none."""
    names = [
        Path(str(one.get("config", {}).get("model_name") or "")).name
        for one in (behind_pairs, of_test)
    ]
    if not all(names):
        return {}
    train, test = names
    if train == test:
        return {"gold_differs": 0.0}
    words = f"training rewards by {train}, test rewards by {test}"
    return {"gold_differs": 1.0, "gold_words": words}


def _differ(stages: dict[str, dict], one: str, other: str) -> tuple[float | None, str]:
    for key in ("rendered_sha256", "template_sha256"):
        hashes = [stages[one].get(key), stages[other].get(key)]
        if all(hashes):
            words = f"{one} {hashes[0][:8]}, {other} {hashes[1][:8]}"
            words = f"the chat templates differ: {words} (first digits of their hashes)"
            return float(hashes[0] != hashes[1]), words
    return None, ""


def start_folder(run: dict) -> tuple[str, str]:
    """The folder of the model that training began from, or "" and why there is none here."""
    name = run["config"].get("model_name", "")
    if not name:
        return "", "run.json names no model that training began from"
    if Path(name, "config.json").is_file():
        return name, ""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(repository, revision=revision or None, local_files_only=True)
    except Exception:  # many exception types: not a name, not in the cache
        return "", f"{name}, where training began, is neither a folder here nor in the hub's cache"
    return folder, ""
