"""What planted_faults.py plants, and what its diagnosis may be called: one row a case.

TRAININGS   the proxies that are trained for it
FAULTS      a fault, or two at once, with the causes that may be named first
HEALTHY     runs without a fault, over seeds, sizes, dtypes and units of gold
REAL_*      the same for a real model: its trainings and its faults

mistakes.py has the faults themselves, and planting.py those of training code. What each case
accepts was written down before it was run. The last four lists were written one after the other,
each by somebody who had not read the rules of its day.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mistakes
import planting
from planting import Training

from rmood.diagnosis import scale

# ---- what a finding may be called ----------------------------------------------------------------

# What was planted -> ids of faults.toml that say so. A rule that is renamed is renamed here alone.
NAMES = {
    # of training
    "rate too low": ("learning_rate_too_low",),
    "rate too high": ("learning_rate_too_high",),
    "too few steps": ("too_few_epochs",),
    "under-learned": ("under_learned",),
    "memorised": ("memorised",),
    "overconfident": ("overconfident_rewards",),
    "squeezed": ("squeezed_rewards",),
    "bf16 weights": ("bf16_updates_lost",),
    "decayed": ("weight_decay_too_high",),
    "frozen": ("backbone_frozen",),
    "centred": ("rewards_overcentred",),
    "dropout": ("dropout_left_on",),
    # of what is read
    "scored token": ("wrong_scored_token",),
    "no template": ("chat_template_missing",),
    "other template": ("chat_template_differs", "sampling_template_differs"),
    "cut": ("closing_token_cut", "long_pairs_left_out"),
    "system messages": ("system_message_differs",),
    # of the labels and the pairs
    "noisy labels": ("noisy_labels",),
    "flipped": ("labels_flipped",),
    "shuffled": ("rewards_shuffled",),
    "leak": ("duplicate_prompts",),
    "not of the responses": ("pairs_not_of_responses",),
    "artifact": ("annotation_artifact",),
    "other test": ("test_pairs_differ",),
    "other sampling": ("sampling_differs",),
    "repeated rows": ("repeated_test_rows",),
    "prompt repeated": ("responses_repeat_prompt",),
    # recorded against measured
    "not as trained": ("model_not_as_trained", "training_not_as_scored"),
    "not this model's": ("rewards_not_of_model",),
    "rescaled": ("rewards_rescaled",),
    "squashed": ("rewards_squashed",),
    "mixed": ("rewards_mixed",),
    "position": ("rewards_offset_by_position", "position_bias", "gold_depends_on_position"),
    # of gold and the responses
    "gold saturated": ("gold_saturated",),
    "gold tied": ("gold_nearly_constant", "identical_responses"),
    "default": ("repeated_reward",),
    "gold is the proxy": ("gold_is_proxy",),
    "length": ("goes_by_length", "gold_is_length", "length_preference_differs"),
    "responses cut": ("truncated_responses",),
}
# ---- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault, or none, with what its diagnosis may say. See planting.py for what is changed.

    accept: keys of NAMES; the first error or warning must be one of these. (): none is expected.
    forbid: keys of ADVICE.
    decidable: can these files show it, with this many test pairs?
    note: to name it in a note is enough, as it does next to no harm.
    refusal: where evaluate.py refuses these files, its message must say this.
    proxy: in TRAININGS; the real world has one proxy.
    tamper: (Bench, folder of a copy of the proxy) -> None.
    rewards: (Scored) -> (P, K): the proxy's rewards are a file, changed like this.
    gold: ((P, K) gold, Files, Bench) -> (P, K); it may write prompts and responses anew, too.
    gold_by_proxy: the gold file's run file names the proxy.
    texts: (P rows of K texts, (P, K) gold, rng) -> both.
    sampling: flags of sample.py: the responses are sampled again, and labelled by gold.
    size, responses: P and K. dtype: for scoring and for evaluate.py.
    harm: (the referee's numbers, of the tampered copy where there is one) -> did the fault do any
        harm? Else the case is left out.
    """

    accept: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    decidable: bool = True
    note: bool = False
    refusal: str = ""
    proxy: str = "hard"
    tamper: Callable | None = None
    rewards: Callable | None = None
    gold: Callable | None = None
    gold_by_proxy: bool = False
    texts: Callable | None = None
    sampling: tuple[str, ...] = ()
    size: int = 500
    responses: int = 2
    dtype: str = "float32"
    harm: Callable | None = None


# ---- proxies -------------------------------------------------------------------------------------

HARD = "--lr 1e-3 --epochs 2"
FULL = 0  # all pairs of the world, some 3,700

TRAININGS = {
    # healthy
    "hard": Training(HARD, FULL),
    "soft": Training("--lr 1e-3 --epochs 3 --label-temperature 1", FULL, seed=1),
    "smooth": Training("--lr 1e-3 --epochs 3 --label-smoothing 0.1", FULL, seed=2),
    "mixed_precision": Training(f"{HARD} --precision mixed", FULL, seed=3),
    "fewer_pairs": Training("--lr 1e-3 --epochs 3 --label-temperature 1", 2800, seed=4),
    # settings
    "rate_20th": Training("--lr 5e-5 --epochs 2"),
    "rate_10th": Training("--lr 1e-4 --epochs 3", seed=1),
    "rate_x20": Training("--lr 2e-2 --epochs 2", FULL),
    "rate_x1000": Training("--lr 1.0 --epochs 2"),
    "one_epoch": Training("--lr 1e-3 --epochs 1", 800),
    "twenty_epochs": Training("--lr 1e-3 --epochs 20", 600),
    "tiny_data": Training("--lr 1e-3 --epochs 20", 120),
    "pure_bf16": Training("--lr 2e-4 --epochs 3 --precision bf16"),
    "decayed": Training("--lr 1e-3 --epochs 3 --weight-decay 200"),
    "smoothing_40": Training("--lr 1e-3 --epochs 3 --label-smoothing 0.4", 2000),
    "temperature_30": Training("--lr 1e-3 --epochs 3 --label-temperature 30", 2000),
    "margin_scaled": Training("--lr 1e-3 --epochs 3 --margin-scale 1", 2000),
    "max_length_40": Training(f"{HARD} --max-length 40", FULL),
    # functions of train.py
    "frozen": Training(HARD, patch=planting.backbone_is_frozen),
    "pad_scored": Training(HARD, patch=planting.pad_is_scored),
    "before_eos_scored": Training(HARD, patch=planting.token_before_eos_is_scored),
    "rows_cut": Training(HARD, patch=planting.rows_are_cut),
    "plain_text": Training(HARD, 2000, patch=planting.no_template),
    "pairs_centred": Training(HARD, 2000, patch=planting.pairs_are_centred),
    "dropout": Training(HARD, FULL, patch=planting.dropout_is_on),
    # pairs
    "flipped_10": Training(HARD, FULL, change=functools.partial(mistakes.flip, 0.1)),
    "flipped_20": Training(HARD, FULL, change=functools.partial(mistakes.flip, 0.2), seed=1),
    "flipped_50": Training(HARD, change=functools.partial(mistakes.flip, 0.5)),
    "flipped_all": Training(HARD, change=functools.partial(mistakes.flip, 1.0)),
    "flipped_20_no_gold": Training(
        "--lr 1e-3 --epochs 4", 2000, change=functools.partial(mistakes.flip, 0.2), with_gold=False
    ),
    "longer_chosen": Training(HARD, 2000, change=mistakes.longer_is_chosen),
    "test_leak": Training("--lr 1e-3 --epochs 4", 2000, change=mistakes.with_test_pairs),
    "system_message": Training(HARD, FULL, change=mistakes.other_system_message),
    "repeated_5": Training(HARD, 2500, change=functools.partial(mistakes.repeated, 5)),
    # pairs of faults
    "flipped_10_rate_20th": Training(
        "--lr 5e-5 --epochs 2", change=functools.partial(mistakes.flip, 0.1)
    ),
    "bf16_rate_20th": Training("--lr 5e-5 --epochs 3 --precision bf16"),
    "smoothing_30_rate_20th": Training("--lr 5e-5 --epochs 2 --label-smoothing 0.3"),
    "pad_scored_flipped_20": Training(
        HARD, 2000, change=functools.partial(mistakes.flip, 0.2), patch=planting.pad_is_scored
    ),
    "leak_twenty_epochs": Training("--lr 1e-3 --epochs 12", 600, change=mistakes.with_test_pairs),
    # second list: written by somebody who had not read the rules
    "early_stopped": Training(  # healthy: eight epochs were asked for
        "--lr 1e-3 --epochs 8 --label-temperature 1 --eval-share 0.1 --early-stop 1", 2800, seed=5
    ),
    "counting_flipped": Training(HARD, FULL, change=mistakes.counting_flipped, seed=6),
    "chosen_by_people": Training(HARD, FULL, change=mistakes.chosen_by_people, seed=7),
    "without_numbers": Training(HARD, FULL, change=mistakes.without_numbers, seed=8),
    "lora_low_rate": Training("--lr 5e-5 --epochs 2 --lora-rank 8", seed=9),
    # third list: written by somebody who had not read the rules
    "huge_batch": Training(f"{HARD} --batch-size 1024", FULL, seed=10),
    "prompt_dropped": Training(HARD, 2000, patch=planting.prompt_is_dropped, seed=11),
    "eos_twice": Training(HARD, FULL, patch=planting.eos_is_written_twice, seed=12),
    "lora_alpha_small": Training(f"{HARD} --lora-rank 8 --lora-alpha 0.25", 2000, seed=13),
    "scores_swapped": Training(
        "--lr 1e-3 --epochs 3 --label-temperature 1", 2000, change=mistakes.scores_swapped, seed=14
    ),
    "easy_negatives": Training(
        HARD, 2000, change=mistakes.easy_negatives, with_gold=False, seed=15
    ),
    "stochastic_rounding": Training(  # healthy
        "--lr 1e-3 --epochs 3 --label-temperature 1 --precision bf16-sr --centring 0.01",
        FULL,
        seed=16,
    ),
    # fourth list: written by somebody who had not read the rules
    "rejected_as_list": Training(
        HARD, 2000, change=mistakes.rejected_as_list, with_gold=False, seed=17
    ),
    "schedule_too_fast": Training(
        HARD, 2000, patch=planting.schedule_counts_micro_batches, seed=18
    ),
    "stopped_at_once": Training(
        "--lr 1e-3 --epochs 4 --eval-share 0.1 --eval-every 1 --early-stop 2", 2000, seed=19
    ),
    "rewards_off_by_one": Training(
        HARD, 2000, change=functools.partial(mistakes.rewards_off_by_one, 0.5), seed=20
    ),
    "sigmoid_in_loss": Training(
        "--lr 1e-3 --epochs 3", 2000, patch=planting.rewards_are_squashed_in_loss, seed=21
    ),
    "constant_rate": Training(  # healthy
        "--lr 5e-4 --epochs 4 --label-temperature 1 --warmup-ratio 0 --min-lr-ratio 1"
        " --max-grad-norm 0.1",
        2000,
        seed=22,
    ),
    # fifth list: written by somebody who had not read the rules
    "batch_of_1": Training("--lr 3e-3 --epochs 1 --batch-size 1", seed=23),
    "positions_run_on": Training(HARD, 2000, patch=planting.positions_run_on, seed=24),
    "same_batches": Training(HARD, 2000, patch=planting.same_batches, seed=25),
    "questions_shifted": Training(HARD, 2000, change=mistakes.questions_shifted, seed=26),
    "lora": Training(  # healthy
        "--lr 5e-3 --epochs 4 --lora-rank 16 --label-temperature 1 --train-sample 0", 2000, seed=27
    ),
}

# ---- what is planted, and what it may be called --------------------------------------------------

RATE_UP = ("raise the rate",)
RATE_DOWN = ("lower the rate",)
MORE = ("raise the rate", "train longer")
TRAINING = ("raise the rate", "lower the rate", "train longer")  # the training was right
SCORE_AGAIN = (*TRAINING, "retrain")  # and the proxy is good: only its rewards file is not
LEARNED_LITTLE = ("rate too low", "too few steps", "under-learned")


def loses(share: float) -> Callable:
    """Harm: the referee's match is lower than this."""
    return lambda truth: truth["match"] < share


def scale_outside(truth: dict) -> bool:
    low, high = scale.CALIBRATED
    return not low <= truth["scale"] <= high


def knows_by_heart(truth: dict) -> bool:
    return truth["train_bits"] > 2 * truth["bits"] or truth["scale"] < 0.5


def partial(function: Callable, *arguments) -> Callable:
    return functools.partial(function, *arguments)


FAULTS = {
    # settings of training
    "rate_20th": Case(LEARNED_LITTLE, RATE_DOWN, proxy="rate_20th", size=200, harm=loses(0.75)),
    "rate_20th_bf16_scoring": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="rate_20th", dtype="bf16", harm=loses(0.75)
    ),
    "rate_10th": Case(LEARNED_LITTLE, RATE_DOWN, proxy="rate_10th", harm=loses(0.77)),
    "rate_x20": Case(("rate too high",), MORE, proxy="rate_x20", size=200, harm=loses(0.8)),
    "rate_x1000": Case(("rate too high",), MORE, proxy="rate_x1000", size=100, harm=loses(0.7)),
    "one_epoch": Case(LEARNED_LITTLE, proxy="one_epoch", harm=loses(0.77)),
    "twenty_epochs": Case(
        ("memorised", "overconfident"), MORE, proxy="twenty_epochs", harm=knows_by_heart
    ),
    "twenty_epochs_bf16_scoring": Case(
        ("memorised", "overconfident"),
        MORE,
        proxy="twenty_epochs",
        size=200,
        dtype="bf16",
        harm=knows_by_heart,
    ),
    "tiny_data": Case(
        ("memorised", "overconfident"), MORE, proxy="tiny_data", size=200, harm=knows_by_heart
    ),
    "pure_bf16": Case(
        ("bf16 weights", "rate too low"), proxy="pure_bf16", size=200, harm=loses(0.78)
    ),
    "decayed": Case(("decayed", *LEARNED_LITTLE), proxy="decayed", harm=loses(0.77)),
    "smoothing_40": Case(("squeezed",), MORE, note=True, proxy="smoothing_40", harm=scale_outside),
    "temperature_30": Case(
        ("squeezed",), MORE, note=True, proxy="temperature_30", harm=scale_outside
    ),
    "margin_scaled": Case(
        ("overconfident", "memorised"), MORE, proxy="margin_scaled", harm=scale_outside
    ),
    "max_length_40": Case(("cut",), RATE_UP, note=True, proxy="max_length_40", size=200),
    # functions of train.py
    "frozen": Case(("frozen",), MORE, proxy="frozen", size=100, harm=loses(0.77)),
    "pad_scored": Case(
        ("scored token", "not as trained"), MORE, proxy="pad_scored", size=200, harm=loses(0.73)
    ),
    "before_eos_scored": Case(
        ("scored token", "not as trained"),
        MORE,
        proxy="before_eos_scored",
        size=100,
        dtype="bf16",
        harm=loses(0.73),
    ),
    "rows_cut": Case(("cut", "not as trained"), MORE, proxy="rows_cut", harm=loses(0.73)),
    "plain_text": Case(
        ("no template", "not as trained"), MORE, proxy="plain_text", size=200, harm=loses(0.73)
    ),
    "pairs_centred": Case(
        ("centred", "squeezed"), MORE, note=True, proxy="pairs_centred", harm=scale_outside
    ),
    "dropout": Case(("dropout",), RATE_UP, proxy="dropout", size=200, note=True),
    # pairs
    "flipped_10": Case(("noisy labels",), MORE, proxy="flipped_10"),
    "flipped_20": Case(("noisy labels",), MORE, proxy="flipped_20", size=200),
    "flipped_20_bf16_scoring": Case(
        ("noisy labels",), MORE, proxy="flipped_20", size=100, dtype="bf16"
    ),
    "flipped_50": Case(("noisy labels", "shuffled", "flipped"), MORE, proxy="flipped_50", size=200),
    "flipped_all": Case(("flipped",), MORE, proxy="flipped_all", size=50),
    "flipped_20_no_gold": Case(
        ("noisy labels", "memorised", "overconfident"),
        MORE,
        proxy="flipped_20_no_gold",
        decidable=False,
    ),
    "longer_chosen": Case(
        ("noisy labels", "flipped", "shuffled", "length"), MORE, proxy="longer_chosen", size=200
    ),
    "test_leak": Case(("leak",), proxy="test_leak"),
    "system_message": Case(("system messages",), note=True, proxy="system_message", size=200),
    "repeated_5": Case(("memorised", "overconfident"), MORE, proxy="repeated_5", size=500),
    # sampling
    "max_tokens_10": Case(
        ("responses cut", "other sampling"), TRAINING, sampling=("--max-tokens", "10"), size=200
    ),
    "sampled_by_other_template": Case(
        ("other template",),
        TRAINING,
        note=True,
        sampling=("--chat-template", "{template}"),
        size=200,
    ),
    "one_seed_for_both": Case(("gold tied",), TRAINING, texts=partial(mistakes.same_twice, 0.7)),
    # gold
    "gold_clipped": Case(("gold saturated",), TRAINING, gold=mistakes.gold_clipped, size=200),
    "gold_sigmoid": Case(
        ("gold saturated", "gold tied"), TRAINING, gold=mistakes.gold_through_sigmoid, note=True
    ),
    "gold_two_values": Case(("gold tied",), TRAINING, gold=mistakes.gold_in_two_values, size=100),
    "gold_shuffled": Case(("shuffled",), TRAINING, gold=mistakes.gold_rows_shuffled, size=200),
    "gold_shuffled_50": Case(
        ("shuffled",), TRAINING, gold=mistakes.gold_rows_shuffled, size=50, decidable=False
    ),
    "gold_second_raised": Case(("position",), TRAINING, gold=mistakes.gold_second_raised, size=200),
    "gold_is_length": Case(("length",), TRAINING, gold=mistakes.gold_is_the_length, size=200),
    "gold_sides_swapped": Case(
        ("flipped", "shuffled"), TRAINING, gold=mistakes.gold_sides_swapped, size=50
    ),
    "gold_is_the_proxy": Case(
        ("gold is the proxy",),
        TRAINING,
        gold=partial(mistakes.gold_by, "hard"),
        gold_by_proxy=True,
        size=200,
        refusal="the proxy itself",
    ),
    # scoring
    "pad_at_scoring": Case(
        ("scored token",), TRAINING, rewards=partial(mistakes.read_as, mistakes.pad_added), size=100
    ),
    "before_eos_at_scoring": Case(
        ("scored token",),
        TRAINING,
        rewards=partial(mistakes.read_as, mistakes.two_cut_off),
        size=50,
        dtype="bf16",
    ),
    "cut_at_scoring": Case(
        ("cut",), TRAINING, rewards=partial(mistakes.read_as, mistakes.cut_at_36), size=200
    ),
    "plain_at_scoring": Case(("no template",), TRAINING, rewards=mistakes.as_plain_text, size=100),
    "other_template_at_scoring": Case(
        ("other template", "not this model's", "scored token"),
        TRAINING,
        rewards=mistakes.without_newline,
    ),
    "dropout_at_scoring": Case(
        ("dropout", "not this model's"), TRAINING, rewards=mistakes.with_dropout, size=500
    ),
    "rows_shuffled": Case(("shuffled",), TRAINING, rewards=mistakes.rows_shuffled, size=500),
    "rows_shuffled_bf16": Case(
        ("shuffled",), TRAINING, rewards=mistakes.rows_shuffled, size=100, dtype="bf16"
    ),
    "sides_swapped": Case(
        ("shuffled", "flipped", "position"), TRAINING, rewards=mistakes.sides_swapped, size=100
    ),
    "another_models_rewards": Case(
        ("not this model's",), TRAINING, rewards=partial(mistakes.of_another, "soft"), size=200
    ),
    "stale_rewards": Case(
        ("not this model's",), TRAINING, rewards=partial(mistakes.of_another, "one_epoch"), size=100
    ),
    "mixed_rewards": Case(
        ("mixed", "not this model's"),
        TRAINING,
        rewards=partial(mistakes.rest_of_another, "one_epoch"),
    ),
    "mixed_rewards_bf16": Case(
        ("mixed", "not this model's"),
        TRAINING,
        rewards=partial(mistakes.rest_of_another, "soft"),
        size=100,
        dtype="bf16",
    ),
    "rescaled": Case(
        ("rescaled",), TRAINING, rewards=partial(mistakes.times_and_plus, 0.2, 3.0), size=100
    ),
    "rescaled_bf16": Case(
        ("rescaled",),
        TRAINING,
        rewards=partial(mistakes.times_and_plus, 4.0, 0.0),
        size=50,
        dtype="bf16",
    ),
    "squashed": Case(("squashed",), TRAINING, rewards=mistakes.squashed, size=200),
    "second_raised": Case(("position",), TRAINING, rewards=mistakes.second_raised, size=100),
    "second_raised_50_bf16": Case(
        ("position",), TRAINING, rewards=mistakes.second_raised, size=50, dtype="bf16"
    ),
    # the saved model
    "head_tenth": Case(
        ("not as trained", "squeezed"), TRAINING, tamper=partial(mistakes.head_times, 0.1)
    ),
    "head_x8": Case(
        ("not as trained", "overconfident"),
        TRAINING,
        tamper=partial(mistakes.head_times, 8.0),
        size=200,
    ),
    "head_drawn_anew": Case(
        ("not as trained",), MORE, tamper=mistakes.head_drawn_anew, size=100, harm=loses(0.75)
    ),
    "backbone_of_another": Case(
        ("not as trained",),
        MORE,
        tamper=partial(mistakes.backbone_of, "smooth"),
        size=200,
        harm=loses(0.75),
    ),
    "vocabulary_shuffled": Case(
        ("not as trained",),
        MORE,
        tamper=mistakes.vocabulary_shuffled,
        size=100,
        dtype="bf16",
        harm=loses(0.75),
    ),
    "template_edited": Case(
        ("other template", "not as trained"),
        MORE,
        tamper=mistakes.template_edited,
        size=200,
        note=True,
    ),
    "weights_3_bits": Case(
        ("not as trained",),
        MORE,
        tamper=mistakes.weights_rounded_to_3_bits,
        size=200,
        dtype="bf16",
        harm=loses(0.75),
    ),
    # two at once: either may be named first
    "flipped_10_rate_20th": Case(
        ("noisy labels", *LEARNED_LITTLE), proxy="flipped_10_rate_20th", harm=loses(0.75)
    ),
    "bf16_rate_20th": Case(
        ("bf16 weights", *LEARNED_LITTLE), RATE_DOWN, proxy="bf16_rate_20th", size=200
    ),
    "smoothing_30_rate_20th": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="smoothing_30_rate_20th", size=200, harm=loses(0.75)
    ),
    "pad_scored_flipped_20": Case(
        ("scored token", "not as trained", "noisy labels"),
        MORE,
        proxy="pad_scored_flipped_20",
        harm=loses(0.75),
    ),
    "leak_twenty_epochs": Case(
        ("leak", "memorised", "overconfident"), MORE, proxy="leak_twenty_epochs"
    ),
    "rows_shuffled_gold_clipped": Case(
        ("shuffled", "gold saturated"),
        TRAINING,
        rewards=mistakes.rows_shuffled,
        gold=mistakes.gold_clipped,
        size=200,
    ),
    "raised_and_rescaled": Case(
        ("position", "rescaled", "not this model's"),
        TRAINING,
        rewards=partial(
            mistakes.both, mistakes.second_raised, partial(mistakes.times_and_plus, 0.3, 0.0)
        ),
        size=100,
    ),
    "mixed_gold_two_values": Case(
        ("mixed", "not this model's", "gold tied"),
        TRAINING,
        rewards=partial(mistakes.rest_of_another, "soft"),
        gold=mistakes.gold_in_two_values,
        size=200,
    ),
    # second list: written by somebody who had not read the rules
    # pairs and settings
    "annotator_flips_counting": Case(("noisy labels",), MORE, proxy="counting_flipped"),
    # what Bradley-Terry assumes of people: a quarter of the labels differ from gold, to little harm
    "noise_on_close_pairs": Case(
        ("noisy labels",), MORE, note=True, proxy="chosen_by_people", size=200
    ),
    # the gap between training and test shows, its cause only to somebody who reads the prompts
    "trained_on_other_prompts": Case(
        ("memorised", "overconfident"),
        MORE,
        decidable=False,
        proxy="without_numbers",
        size=200,
        harm=loses(0.77),
    ),
    "lora_low_rate": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="lora_low_rate", size=200, harm=loses(0.77)
    ),
    # gold
    "judge_prefers_first": Case(
        ("position",),
        TRAINING,
        proxy="soft",
        gold=partial(mistakes.judge_prefers_first, 0.6),
        size=200,
    ),
    # the first one wins some 65% of the pairs instead of 45%: too little to show in 50
    "judge_leans_to_first_50": Case(
        ("position",),
        TRAINING,
        decidable=False,
        gold=partial(mistakes.gold_first_raised, 0.3),
        size=50,
    ),
    "gold_probability_clipped": Case(  # two thirds of the values are at an end
        ("gold saturated", "gold tied"),
        TRAINING,
        proxy="smooth",
        gold=partial(mistakes.gold_probability_clipped, 0.2),
        size=200,
    ),
    "gold_default_in_last_half": Case(  # the pairs that are left are right
        ("gold tied",),
        TRAINING,
        note=True,
        proxy="fewer_pairs",
        gold=mistakes.gold_default_in_last_half,
        size=200,
    ),
    "gold_is_rank": Case(
        ("flipped",), TRAINING, gold=mistakes.gold_rank, size=100, responses=4, dtype="bf16"
    ),
    "gold_off_by_one_later": Case(
        ("shuffled",),
        TRAINING,
        proxy="mixed_precision",
        gold=partial(mistakes.gold_off_by_one, 0.4),
    ),
    "gold_of_earlier_samples": Case(
        ("shuffled",), TRAINING, texts=mistakes.sampled_again, size=100, responses=4
    ),
    "gold_prefers_short": Case(
        ("length",),
        TRAINING,
        proxy="soft",
        gold=mistakes.gold_prefers_short,
        size=200,
        dtype="bf16",
    ),
    # the test prompts
    "test_without_system_turn": Case(
        ("system messages",), TRAINING, note=True, gold=mistakes.no_system_turn, size=200
    ),
    "test_prompts_from_training": Case(("leak",), gold=mistakes.of_training_prompts, size=200),
    # scoring
    "default_reward_at_the_end": Case(
        ("mixed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(mistakes.default_at_the_end, 0.2),
        size=200,
    ),
    "one_column_of_another": Case(
        ("mixed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(mistakes.column_of_another, 2, "soft"),
        size=100,
        responses=4,
    ),
    "averaged_with_another": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(mistakes.averaged_with, "hard"),
        size=200,
        dtype="bf16",
    ),
    "another_revision": Case(
        ("not this model's",),
        SCORE_AGAIN,
        rewards=partial(mistakes.of_weights_nearer_the_start, 0.2),
    ),
    "offset_alone": Case(  # within a prompt nothing changes
        ("rescaled",),
        SCORE_AGAIN,
        note=True,
        proxy="soft",
        rewards=partial(mistakes.times_and_plus, 1.0, -40.0),
        size=50,
    ),
    "length_penalty": Case(
        ("not this model's", "length"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=mistakes.with_length_penalty,
        size=200,
    ),
    "standardised_within_prompts": Case(
        ("not this model's", "rescaled", "squashed"),
        SCORE_AGAIN,
        rewards=mistakes.standardised_within_prompts,
        size=100,
        responses=4,
    ),
    "prompts_off_by_one": Case(
        ("not this model's", "shuffled"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=mistakes.with_the_next_prompt,
        size=100,
        dtype="bf16",
    ),
    "generation_prompt_at_scoring": Case(
        ("scored token", "other template", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(mistakes.read_as, mistakes.next_turn_opened),
        size=50,
    ),
    # the saved model
    "last_layer_of_the_start": Case(
        ("not as trained",),
        MORE,
        tamper=mistakes.last_layer_of_the_start,
        size=100,
        harm=loses(0.77),
    ),
    # third list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # the batch size of a cluster's recipe on few pairs: 8 steps in all
    "huge_batch": Case(LEARNED_LITTLE, RATE_DOWN, proxy="huge_batch", size=200, harm=loses(0.77)),
    # the collator kept the answers alone; whoever scores passes the whole conversation
    "prompt_dropped": Case(
        ("not as trained", "other template"),
        MORE,
        proxy="prompt_dropped",
        size=200,
        harm=loses(0.77),
    ),
    # the trainer appends eos to a text whose template has written it; scoring does not
    "eos_twice": Case(
        ("scored token", "not as trained"), MORE, proxy="eos_twice", size=100, harm=loses(0.77)
    ),
    # alpha left as it was when the rank was raised: adapters that add next to nothing
    "lora_alpha_small": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="lora_alpha_small", size=100, harm=loses(0.77)
    ),
    # soft labels made from score columns that are the wrong way round
    "scores_swapped": Case(("flipped",), MORE, proxy="scores_swapped", size=100, dtype="bf16"),
    # right answers against answers to other questions: easier than the pairs of the test
    "easy_negatives": Case(
        ("not of the responses", "artifact", "other test"),
        RATE_UP,
        proxy="easy_negatives",
        size=200,
        harm=loses(0.77),
    ),
    # scoring
    # a text that is rendered already, sent to a chat endpoint that renders it
    "template_twice_at_scoring": Case(
        ("other template", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(mistakes.scored_as, mistakes.rendered_twice),
        size=100,
    ),
    # rewards that depend on the batch: pads at the left, and no mask or positions that skip them
    "left_pads_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=partial(mistakes.read_as, mistakes.padded_on_the_left),
        size=200,
    ),
    # the question falls to the left truncation; the closing token stays
    "left_cut_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=partial(mistakes.read_as, mistakes.cut_on_the_left),
        size=100,
        dtype="bf16",
    ),
    "default_system_message_at_scoring": Case(
        ("system messages", "other template", "not this model's"),
        SCORE_AGAIN,
        note=True,
        rewards=partial(mistakes.scored_as, mistakes.with_default_system_message),
        size=200,
    ),
    # the cleaning step of an older classifier
    "lower_case_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(mistakes.scored_as, mistakes.in_lower_case),
        size=100,
    ),
    "questions_empty_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(mistakes.scored_as, mistakes.without_question),
        size=50,
        dtype="bf16",
    ),
    "whole_numbers": Case(  # a monotone function, too, as the rule says since
        ("not this model's", "squashed"),
        SCORE_AGAIN,
        rewards=mistakes.in_whole_numbers,
        size=200,
        responses=4,
    ),
    "clipped_at_1": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=partial(mistakes.clipped, 1.0),
        size=100,
    ),
    # a server's default activation, over the candidates of a request
    "softmax_over_responses": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=mistakes.softmax_over_responses,
        size=100,
        responses=4,
    ),
    # a server's default activation, over the labels, of which there is one: every reward is 1
    "softmax_of_one_label": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        rewards=mistakes.softmax_of_one_label,
        size=50,
    ),
    # rewards whitened by the statistics of their batch: within it nothing changes but the unit
    "standardised_by_batch": Case(
        ("not this model's", "rescaled", "mixed"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=mistakes.standardised_by_batch,
        size=200,
        responses=4,
    ),
    "gathered_by_rank": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=mistakes.gathered_by_rank,
        size=200,
        dtype="bf16",
    ),
    "column_after_column": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=mistakes.column_after_column,
        size=50,
        responses=4,
    ),
    "best_reward_first": Case(
        ("position", "shuffled", "not this model's"),
        SCORE_AGAIN,
        rewards=mistakes.best_reward_first,
        size=100,
        responses=4,
    ),
    # the labels 0 and 1 of a pairwise judge read the other way round
    "rewards_negated": Case(
        ("flipped", "rescaled", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=mistakes.negated,
        size=50,
        dtype="bf16",
    ),
    # a part of the rewards are another prompt's, to little harm
    "cached_by_response": Case(
        ("not this model's", "mixed"),
        SCORE_AGAIN,
        note=True,
        rewards=mistakes.cached_by_response,
        responses=4,
    ),
    # gold
    # answers of a judge that no pattern matched; a spike at 0 among whole numbers from 1
    "judge_failed_to_zero": Case(
        ("gold saturated", "gold tied", "default"),
        TRAINING,
        proxy="soft",
        gold=partial(mistakes.judge_failed_to_zero, 0.35),
        size=200,
    ),
    "gold_columns_moved": Case(
        ("shuffled",), TRAINING, gold=mistakes.gold_columns_moved, size=100, responses=4
    ),
    "judge_saw_no_response": Case(
        ("shuffled",), TRAINING, proxy="fewer_pairs", gold=mistakes.gold_of_prompts_alone, size=200
    ),
    # gold unrelated to the responses: of the ids there are, shuffled rewards come nearest
    "gold_head_drawn_anew": Case(
        ("shuffled",), TRAINING, proxy="mixed_precision", gold=mistakes.gold_by_new_head, size=200
    ),
    "gold_row_lost": Case(
        (), TRAINING, proxy="soft", gold=mistakes.gold_last_row_lost, size=100, refusal="rows"
    ),
    "gold_of_two_of_four": Case(
        (), TRAINING, gold=mistakes.gold_of_the_first_two, size=50, responses=4, refusal="entries"
    ),
    # responses, prompts and sampling
    # to little harm
    "prompts_in_responses": Case(
        ("prompt repeated",), TRAINING, note=True, gold=mistakes.prompts_in_responses, size=200
    ),
    "closing_token_in_text": Case(
        ("other template", "scored token"),
        TRAINING,
        note=True,
        proxy="smooth",
        texts=mistakes.closing_token_in_text,
        size=200,
    ),
    "sampled_nearly_greedily": Case(
        ("gold tied",), TRAINING, sampling=("--temperature", "0.05"), size=200
    ),
    # a quarter of the prompts that are counted: every interval is half as wide as it should be
    "test_rows_four_times": Case(
        ("leak", "repeated rows"),
        TRAINING,
        note=True,
        proxy="soft",
        gold=mistakes.quarter_four_times,
        size=200,
    ),
    # the saved model
    "head_negated": Case(
        ("not as trained", "flipped"),
        MORE,
        proxy="soft",
        tamper=partial(mistakes.head_times, -1.0),
        size=50,
        harm=loses(0.5),
    ),
    "rope_scaling_added": Case(
        ("not as trained",),
        MORE,
        proxy="mixed_precision",
        tamper=mistakes.rope_scaling_added,
        size=100,
        harm=loses(0.77),
    ),
    "window_switched_on": Case(
        ("not as trained",),
        MORE,
        tamper=mistakes.window_switched_on,
        size=200,
        dtype="bf16",
        harm=loses(0.77),
    ),
    "layers_in_another_order": Case(
        ("not as trained",),
        MORE,
        proxy="fewer_pairs",
        tamper=mistakes.layers_in_another_order,
        size=100,
        harm=loses(0.77),
    ),
    "update_added_twice": Case(
        ("not as trained", "overconfident"),
        MORE,
        tamper=mistakes.update_added_twice,
        size=200,
        harm=lambda truth: truth["scale"] < scale.CALIBRATED[0],
    ),
    # two at once
    "gathered_by_rank_and_clipped": Case(
        ("shuffled", "squashed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(mistakes.both, mistakes.gathered_by_rank, partial(mistakes.clipped, 1.0)),
        size=100,
    ),
    # two signs that cancel: the order is right, the model and its labels are not
    "flipped_and_negated": Case(
        ("flipped", "rescaled", "not this model's"),
        MORE,
        proxy="flipped_all",
        rewards=mistakes.negated,
        size=100,
    ),
    # fourth list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # str() of a list of one answer: every rejected text begins with a bracket, no chosen one does
    "rejected_as_list": Case(
        ("artifact", "not of the responses", "other test"),
        MORE,
        proxy="rejected_as_list",
        size=200,
        harm=loses(0.7),
    ),
    # the scheduler was stepped at each micro-batch: the rate is at its floor after an eighth
    "schedule_too_fast": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="schedule_too_fast", size=200, harm=loses(0.77)
    ),
    # patience counts evaluations, not epochs: with one each step the run ends after a tenth
    "stopped_at_once": Case(
        ("too few steps", "under-learned"),
        RATE_DOWN,
        proxy="stopped_at_once",
        size=100,
        dtype="bf16",
        harm=loses(0.77),
    ),
    # chosen and its score agree in every row, but from some row on both are another prompt's
    "rewards_off_by_one": Case(
        ("noisy labels", "shuffled"), MORE, proxy="rewards_off_by_one", harm=loses(0.77)
    ),
    # a sigmoid "for a reward of 0 to 1" before the loss: rewards run to its flat ends. No id says
    # this, but they are too wide for what they know
    "sigmoid_in_loss": Case(
        ("overconfident",),
        MORE,
        decidable=False,
        proxy="sigmoid_in_loss",
        size=200,
        harm=scale_outside,
    ),
    # scoring
    # get_reward without the prompt's length: both responses have the reward of their prompt
    "prompt_scored": Case(
        ("scored token", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(mistakes.read_as, mistakes.until_prompt_ends),
        size=100,
    ),
    # a pooling that is the default for embeddings
    "mean_pooling": Case(
        ("scored token", "not this model's"),
        SCORE_AGAIN,
        rewards=mistakes.mean_over_tokens,
        size=200,
    ),
    "empty_thoughts": Case(
        ("other template", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=mistakes.with_empty_thoughts,
        size=100,
        dtype="bf16",
    ),
    # group_by_length, and predictions in the order of the batches
    "sorted_by_length": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=mistakes.sorted_by_length,
        size=200,
        responses=4,
    ),
    "null_rewards": Case(
        (),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=mistakes.some_null,
        size=60,
        refusal="finite number",
    ),
    "filled_up_for_processes": Case(
        (),
        SCORE_AGAIN,
        rewards=mistakes.filled_up_for_processes,
        size=50,
        responses=4,
        refusal="rows",
    ),
    # a dashboard's percentile instead of the reward: no order is changed
    "percentile_of_file": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=mistakes.percentile_of_file,
        size=200,
        dtype="bf16",
    ),
    # what PPO subtracts and divides by moves from batch to batch, most in the first ones
    "running_moments": Case(
        ("rescaled", "mixed", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=mistakes.by_running_moments,
        size=100,
        responses=4,
    ),
    # gold
    "gold_in_order_of_strings": Case(
        ("shuffled",), TRAINING, proxy="smooth", gold=mistakes.gold_in_order_of_strings, size=200
    ),
    "incorrect_is_correct": Case(
        ("gold tied", "default", "gold saturated"),
        TRAINING,
        proxy="mixed_precision",
        gold=mistakes.incorrect_is_correct,
        size=200,
        responses=4,
    ),
    # no id says this: two fifths of the rewards are numbers that the answers hold
    "gold_first_number": Case(
        ("shuffled",),
        TRAINING,
        decidable=False,
        proxy="soft",
        gold=mistakes.gold_first_number,
        size=200,
    ),
    # each prompt's two rewards are right, and in half of the rows the wrong way round
    "order_not_undone": Case(
        ("shuffled",), TRAINING, proxy="fewer_pairs", gold=mistakes.order_not_undone, size=300
    ),
    # the agreement is too good; without gold's own rewards nothing tells it from a good proxy
    "proxy_in_ensemble": Case(
        ("gold is the proxy",),
        TRAINING,
        decidable=False,
        proxy="smooth",
        gold=partial(mistakes.gold_and_proxy, "smooth"),
        size=200,
    ),
    # responses and sampling
    # half of the texts end after 20 characters in the middle of a word, and no text is longer
    "texts_cut_after_gold": Case(
        ("responses cut",), TRAINING, texts=partial(mistakes.cut_after_gold, 20), size=200
    ),
    # the proxy is as good as it was, but these pairs are of another kind than those it is for
    "other_answers_second": Case(
        ("other test",), TRAINING, proxy="soft", gold=mistakes.other_answers_second, size=200
    ),
    # a temperature from another model's recipe: words without sense, up to the token limit
    "sampled_too_hot": Case(
        ("other test", "other sampling", "responses cut"),
        TRAINING,
        proxy="smooth",
        sampling=("--temperature", "2.5", "--seed", "4"),
        size=100,
    ),
    # the saved model
    # to little harm, but the pairs that train.py scored at its end have other rewards now
    "gate_and_up_swapped": Case(
        ("not as trained",), MORE, tamper=mistakes.gate_and_up_swapped, size=200, harm=loses(0.82)
    ),
    "embeddings_drawn_anew": Case(
        ("not as trained",),
        MORE,
        proxy="smooth",
        tamper=mistakes.embeddings_drawn_anew,
        size=100,
        dtype="bf16",
        harm=loses(0.77),
    ),
    "rotary_order_of_another": Case(
        ("not as trained",),
        MORE,
        proxy="soft",
        tamper=mistakes.rotary_order_of_another,
        size=200,
        harm=loses(0.77),
    ),
    # two at once
    # the labels are noisy, and the rewards file is in another unit than the model's
    "flipped_20_and_rescaled": Case(
        ("noisy labels", "rescaled", "not this model's"),
        MORE,
        proxy="flipped_20",
        rewards=partial(mistakes.times_and_plus, 0.2, 0.0),
        size=300,
    ),
    # a proxy that has learned little, judged by a gold whose sides are mixed up: both are needed
    "one_epoch_order_not_undone": Case(
        ("shuffled", *LEARNED_LITTLE),
        RATE_DOWN,
        proxy="one_epoch",
        gold=mistakes.order_not_undone,
        size=500,
    ),
    # fifth list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # memory ran out: the batch went down to one pair, and the rate stayed that of a large batch
    "batch_of_1": Case(("rate too high",), RATE_UP, proxy="batch_of_1", size=200, harm=loses(0.77)),
    # in the packed pass the rejected one is further from its prompt, which no reader of one
    # response sees. No id says this: the log and the training pairs only disagree
    "positions_run_on": Case(
        ("not as trained",),
        MORE,
        decidable=False,
        proxy="positions_run_on",
        size=200,
        harm=loses(0.77),
    ),
    # a switch for debugging was left on: all steps have the same four batches, 128 pairs of 2,000
    "same_batches": Case(
        ("memorised", "overconfident", "not as trained"),
        MORE,
        proxy="same_batches",
        size=200,
        harm=loses(0.77),
    ),
    # the questions were joined by row number after one was lost: no pair has its own
    "questions_shifted": Case(
        ("not of the responses", "shuffled", "noisy labels"),
        MORE,
        proxy="questions_shifted",
        size=300,
        dtype="bf16",
        harm=loses(0.77),
    ),
    # gold
    # verdicts of two orders added up without turning one back: mostly ties
    "second_round_not_turned_back": Case(
        ("gold tied", "position"),
        TRAINING,
        proxy="soft",
        gold=mistakes.second_round_not_turned_back,
        size=200,
    ),
    # the wrong column of a best-of-n table: no later response is ever worse
    "gold_best_so_far": Case(
        ("position", "gold tied"),
        TRAINING,
        proxy="mixed_precision",
        gold=mistakes.gold_best_so_far,
        size=100,
        responses=4,
    ),
    # no id says that it was gold that read the texts without their ends
    "gold_cut_by_server": Case(
        ("cut",),
        TRAINING,
        decidable=False,
        proxy="smooth",
        gold=partial(mistakes.gold_cut_by_server, 32),
        size=300,
    ),
    # responses, prompts and sampling
    # gold read numbers, the proxy reads [NUMBER], which no training pair has
    "numbers_masked": Case(
        ("other test", "other sampling"), TRAINING, texts=mistakes.numbers_masked, size=200
    ),
    # three turns of the user in each test prompt, one in each training pair
    "few_shot_prompts": Case(
        ("other test", "other sampling"),
        TRAINING,
        proxy="fewer_pairs",
        gold=mistakes.few_shot_prompts,
        size=200,
        dtype="bf16",
    ),
    # 0.5 where 0.95 was meant: four in ten pairs of responses are the same text twice
    "top_p_mistyped": Case(
        ("gold tied", "other sampling"),
        TRAINING,
        proxy="soft",
        sampling=("--top-p", "0.5", "--num-responses", "4", "--seed", "6"),
        size=100,
    ),
    # scoring
    "first_vocabulary_logit": Case(
        ("not this model's",), SCORE_AGAIN, rewards=mistakes.first_vocabulary_logit, size=100
    ),
    # every reward is the same number, which the model gives the first token of a conversation
    "first_token_pooled": Case(
        ("scored token", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(mistakes.read_as, mistakes.first_token_alone),
        size=100,
        responses=4,
    ),
    # within a prompt nothing changes, but the first response always has 0
    "minus_the_first": Case(
        ("rescaled", "not this model's"),
        SCORE_AGAIN,
        note=True,
        proxy="soft",
        rewards=mistakes.minus_the_first,
        size=200,
        responses=4,
        dtype="bf16",
    ),
    # what is wrong with a reward depends on its place in the row: the first one is right
    "history_kept": Case(
        ("not this model's", "position", "mixed"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=mistakes.history_kept,
        size=100,
    ),
    "sign_lost": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=mistakes.sign_lost,
        size=50,
        responses=4,
    ),
    "timeouts_as_mean": Case(
        ("mixed", "not this model's", "default"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(mistakes.timeouts_as_mean, 0.2),
        size=200,
        dtype="bf16",
    ),
    "decimal_commas": Case(
        (), SCORE_AGAIN, rewards=mistakes.with_decimal_commas, size=50, refusal="finite number"
    ),
    # the saved model
    "one_added_to_norms": Case(
        ("not as trained", "overconfident"),
        MORE,
        proxy="soft",
        tamper=mistakes.one_added_to_norms,
        size=200,
        harm=loses(0.84),
    ),
    "prefix_space_added": Case(
        ("not as trained",),
        MORE,
        proxy="mixed_precision",
        tamper=mistakes.prefix_space_added,
        size=200,
        dtype="bf16",
        harm=loses(0.8),
    ),
    # a good model under the records of a poor run: what they say of training is not about it
    "records_of_another": Case(
        ("not as trained",),
        MORE,
        proxy="smooth",
        tamper=partial(mistakes.records_of, "one_epoch"),
        size=200,
    ),
    # two at once
    # a proxy that has learned little, whose rewards were made with other names of the roles
    "one_epoch_sharegpt_roles": Case(
        ("other template", "not this model's", *LEARNED_LITTLE),
        RATE_DOWN,
        proxy="one_epoch",
        rewards=partial(mistakes.scored_as, mistakes.with_sharegpt_roles),
        size=300,
        harm=loses(0.77),
    ),
    # the labels are noisy, and of the test responses the numbers are masked
    "flipped_20_numbers_masked": Case(
        ("noisy labels", "other test", "other sampling"),
        MORE,
        proxy="flipped_20",
        texts=mistakes.numbers_masked,
        size=300,
    ),
}

HEALTHY = {
    "healthy_hard": Case(),
    "healthy_hard_200": Case(size=200),
    "healthy_hard_100": Case(size=100),
    "healthy_hard_50": Case(size=50),
    "healthy_hard_bf16": Case(dtype="bf16"),
    "healthy_hard_four_responses": Case(size=200, responses=4),
    "healthy_hard_gold_x10": Case(gold=partial(mistakes.gold_times, 10.0)),
    "healthy_hard_gold_tenth": Case(gold=partial(mistakes.gold_times, 0.1)),
    "healthy_hard_1_to_10": Case(gold=partial(mistakes.gold_from_1_to, 10)),
    "healthy_hard_file": Case(rewards=mistakes.as_they_are, size=200),
    "healthy_hard_file_bf16": Case(rewards=mistakes.as_they_are, size=200, dtype="bf16"),
    "healthy_soft": Case(proxy="soft"),
    "healthy_soft_200": Case(proxy="soft", size=200),
    "healthy_soft_100_bf16": Case(proxy="soft", size=100, dtype="bf16"),
    "healthy_soft_four_responses": Case(proxy="soft", size=100, responses=4),
    "healthy_soft_gold_x10": Case(proxy="soft", size=200, gold=partial(mistakes.gold_times, 10.0)),
    "healthy_soft_file_bf16": Case(proxy="soft", rewards=mistakes.as_they_are, dtype="bf16"),
    "healthy_smooth": Case(proxy="smooth"),
    "healthy_smooth_100": Case(proxy="smooth", size=100),
    "healthy_smooth_gold_tenth": Case(
        proxy="smooth", size=200, gold=partial(mistakes.gold_times, 0.1)
    ),
    "healthy_mixed_precision": Case(proxy="mixed_precision"),
    "healthy_mixed_precision_100": Case(proxy="mixed_precision", size=100, dtype="bf16"),
    "healthy_mixed_precision_four": Case(proxy="mixed_precision", size=500, responses=4),
    "healthy_fewer_pairs": Case(proxy="fewer_pairs"),
    "healthy_fewer_pairs_200": Case(proxy="fewer_pairs", size=200),
    "healthy_fewer_pairs_50_bf16": Case(proxy="fewer_pairs", size=50, dtype="bf16"),
    # second list: written by somebody who had not read the rules
    "healthy_early_stopped": Case(proxy="early_stopped"),
    "healthy_early_stopped_four": Case(proxy="early_stopped", size=100, responses=4, dtype="bf16"),
    "healthy_soft_probability": Case(proxy="soft", gold=partial(mistakes.gold_probability, 3.0)),
    "healthy_smooth_1_to_7": Case(
        proxy="smooth", size=200, gold=partial(mistakes.gold_from_1_to, 7)
    ),
    "healthy_soft_calibrated": Case(
        proxy="soft", tamper=partial(mistakes.calibrated, "soft"), size=200
    ),
    "healthy_hard_saved_in_bf16": Case(tamper=partial(mistakes.saved_in, "bfloat16"), size=200),
    "healthy_smooth_two_decimals": Case(proxy="smooth", rewards=mistakes.in_two_decimals, size=200),
    # as a file of preferences is written: the proxy finds the first one better, too
    "healthy_hard_best_first": Case(texts=mistakes.best_first, size=200),
    "healthy_fewer_pairs_minus_1000": Case(
        proxy="fewer_pairs", gold=partial(mistakes.gold_plus, -1000.0), size=100, responses=4
    ),
    "healthy_mixed_precision_same": Case(  # a few answers come twice, as at a low temperature
        proxy="mixed_precision", texts=partial(mistakes.same_twice, 0.1), size=100
    ),
    # third list: written by somebody who had not read the rules
    "healthy_stochastic_rounding": Case(proxy="stochastic_rounding", size=200),
    "healthy_other_sampling_seed": Case(proxy="soft", sampling=("--seed", "7"), size=200),
    "healthy_cooler_samples": Case(
        proxy="smooth", sampling=("--temperature", "0.7", "--seed", "3"), size=100
    ),
    "healthy_sorted_by_question": Case(
        proxy="mixed_precision", gold=mistakes.sorted_by_question, size=200
    ),
    "healthy_best_last_four": Case(proxy="soft", texts=mistakes.best_last, size=100, responses=4),
    "healthy_percent": Case(
        proxy="fewer_pairs", gold=mistakes.gold_percent, size=100, dtype="bf16"
    ),
    "healthy_log_probability": Case(
        proxy="soft", gold=mistakes.gold_log_probability, size=200, responses=4, dtype="bf16"
    ),
    "healthy_elo": Case(gold=mistakes.gold_elo, size=50),
    "healthy_level_of_each_prompt": Case(
        proxy="smooth", gold=mistakes.gold_offset_by_prompt, size=100, responses=4
    ),
    "healthy_float16_file": Case(
        proxy="fewer_pairs", rewards=mistakes.in_float16, size=100, responses=4
    ),
    "healthy_by_transformers": Case(
        proxy="mixed_precision", rewards=mistakes.by_transformers, size=200, dtype="bf16"
    ),
    "healthy_short_responses": Case(proxy="soft", gold=mistakes.short_responses_alone),
    "healthy_some_empty": Case(gold=mistakes.some_responses_empty, size=200, responses=4),
    "healthy_without_records": Case(proxy="smooth", tamper=mistakes.without_records, size=200),
    "healthy_in_two_files": Case(
        proxy="fewer_pairs", tamper=mistakes.in_two_files, size=100, responses=4, dtype="bf16"
    ),
    # fourth list: written by somebody who had not read the rules
    "healthy_constant_rate": Case(proxy="constant_rate", size=200),
    "healthy_votes": Case(proxy="soft", gold=mistakes.gold_votes, size=300),
    "healthy_no_prompt_means": Case(
        proxy="mixed_precision", gold=mistakes.gold_without_prompt_mean, size=100, responses=4
    ),
    "healthy_odds": Case(gold=mistakes.gold_odds, size=200),
    "healthy_closest_first": Case(gold=mistakes.closest_first, size=200, dtype="bf16"),
    "healthy_no_digits": Case(proxy="smooth", gold=mistakes.questions_without_digits),
    "healthy_shortest_first": Case(
        proxy="mixed_precision", texts=mistakes.shortest_first, size=200
    ),
    "healthy_nucleus_four": Case(
        sampling=("--top-p", "0.95", "--num-responses", "4", "--seed", "5"), size=100
    ),
    "healthy_bf16_head": Case(proxy="soft", rewards=mistakes.in_bf16, size=200, dtype="bf16"),
    "healthy_vocabulary_padded": Case(
        proxy="fewer_pairs", tamper=mistakes.vocabulary_padded, size=100
    ),
    "healthy_template_written_anew": Case(
        tamper=mistakes.template_written_anew, size=200, dtype="bf16"
    ),
    "healthy_pairs_are_gone": Case(proxy="soft", tamper=mistakes.pairs_are_gone, size=200),
    "healthy_longer_context": Case(
        proxy="smooth", tamper=mistakes.longer_context, size=100, responses=4, dtype="bf16"
    ),
    "healthy_soft_50_four_bf16": Case(proxy="soft", size=50, responses=4, dtype="bf16"),
    # fifth list: written by somebody who had not read the rules
    "healthy_lora": Case(proxy="lora", size=200),
    "healthy_eight_responses": Case(
        proxy="smooth", sampling=("--num-responses", "8", "--seed", "8"), size=60
    ),
    "healthy_refusals_at_floor": Case(
        proxy="soft", gold=mistakes.refusals_at_floor, size=100, responses=4, dtype="bf16"
    ),
    "healthy_two_rounds": Case(gold=mistakes.sampled_in_two_rounds, size=150, responses=4),
    # easier than the pairs of training: nearly all are right
    "healthy_clear_pairs": Case(proxy="mixed_precision", gold=mistakes.clear_pairs_alone, size=300),
    "healthy_outliers_clipped": Case(
        proxy="fewer_pairs", gold=mistakes.gold_outliers_clipped, size=200
    ),
    "healthy_five_answers": Case(proxy="smooth", gold=mistakes.gold_of_five_answers, dtype="bf16"),
    "healthy_half_in_bf16": Case(proxy="soft", rewards=mistakes.second_half_in_bf16, size=200),
    "healthy_left_padding": Case(  # with a mask, so the pads are not read
        rewards=functools.partial(mistakes.by_transformers, padding_side="left"),
        size=100,
        responses=4,
    ),
    "healthy_log_cut": Case(proxy="mixed_precision", tamper=mistakes.log_cut, size=200),
    "healthy_token_added": Case(
        proxy="fewer_pairs", tamper=mistakes.token_added, size=50, dtype="bf16"
    ),
    "healthy_saved_in_float16": Case(
        proxy="soft", tamper=partial(mistakes.saved_in, "float16"), size=100, responses=4
    ),
}

# ---- the real world ------------------------------------------------------------------------------

# On short pairs of the dataset, from the model that the proxy was trained from: few, as a step of
# eight takes some 20 s on a core.
REAL_TRAININGS = {
    "real_by_heart": Training("--lr 1e-4 --epochs 8 --batch-size 8", 32),
    "real_rate_low": Training("--lr 1e-7 --epochs 2 --batch-size 4", 48),
    "real_rate_high": Training("--lr 2e-2 --epochs 2 --batch-size 4", 48),
    "real_pure_bf16": Training("--lr 1e-6 --epochs 2 --batch-size 4 --precision bf16", 48),
    "real_frozen": Training(
        "--lr 1e-4 --epochs 2 --batch-size 4", 48, patch=planting.backbone_is_frozen
    ),
}
REAL_FILES = (  # these need no training of their own
    *("pad_at_scoring", "before_eos_at_scoring", "plain_at_scoring", "rows_shuffled"),
    *("sides_swapped", "another_models_rewards", "mixed_rewards_bf16", "rescaled", "squashed"),
    *("second_raised", "head_x8", "head_drawn_anew", "backbone_of_another"),
    *("vocabulary_shuffled", "gold_is_the_proxy", "gold_is_length"),
)
# No healthy runs: without a referee nobody says that a real proxy and its gold are healthy.
REAL_FAULTS = {name: FAULTS[name] for name in REAL_FILES} | {
    "real_by_heart": Case(("memorised", "overconfident"), MORE, proxy="real_by_heart"),
    "real_rate_low": Case(LEARNED_LITTLE, RATE_DOWN, proxy="real_rate_low"),
    "real_rate_high": Case(("rate too high",), MORE, proxy="real_rate_high"),
    "real_pure_bf16": Case(("bf16 weights", *LEARNED_LITTLE), RATE_DOWN, proxy="real_pure_bf16"),
    "real_frozen": Case(("frozen",), MORE, proxy="real_frozen"),
}
# --world -> the faults, the healthy runs, the trainings
LISTS = {"toy": (FAULTS, HEALTHY, TRAININGS), "real": (REAL_FAULTS, {}, REAL_TRAININGS)}
REAL_SIZE = 60  # test pairs: a real model takes minutes for each hundred
