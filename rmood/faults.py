"""The faults of a reward model: a table of rules that turns measured numbers into findings.

A finding names a fault (`id`), how bad it is, the numbers that show it, likely causes and what to do. Causes stand before the
symptoms that they bring. The numbers are those of diagnostics.py and probes.py; docs/metrics.md explains each.
"""

import re
from string import Formatter
from typing import NamedTuple

from .diagnostics import least_loss


class Rule(NamedTuple):
    """One fault: it is found where every number in `when` was measured and lies in its range [from, below)."""

    id: str
    severity: str  # error: the model is not fit for use; warning: look before use
    when: dict[str, tuple[float, float]]
    evidence: tuple[str, ...]  # clauses; those whose numbers were not measured are left out
    causes: tuple[str, ...]  # likeliest first, each with what would tell it from the next
    advice: str
    last_resort: bool = False  # a cause that is named only where nothing else explains the fault


SEVERITIES = ("error", "warning")
SYMPTOMS = ("compressed_rewards", "random_match", "low_match", "training_failed", "not_learning", "loss_not_decreasing", "poor_generalization", "overdispersed_rewards", "tied_rewards")
INF = float("inf")
MATCH = "match with gold {match:.3f} over {compared:,} pairs (95%: {match_low:.3f} to {match_high:.3f}; good is above 0.80, random 0.50)"
ACCURACY = "training accuracy {train_accuracy:.3f} (should be above 0.90)"
RANGES = "rewards {proxy_min:.2f} to {proxy_max:.2f} (std {proxy_std:.2f}), gold's {gold_min:.2f} to {gold_max:.2f} (std {gold_std:.2f})"
TRAIN_LONGER = "raise the rate (a 4B model: --lr 5e-5, not 5e-6) and train --epochs 2 or more; the loss should fall from about 0.7 to below 0.3"

STEPS = "{steps:.0f} steps over {epochs:.0f} epochs, each of {update_ratio:.1e} of the weights' norm"
FALLS_SHORT = {"falls_short": (1, 2)}  # see `findings`

# Causes first, then the symptoms they bring. Thresholds: those of the reference pipeline (match 0.80, accuracy 0.70 / 0.80,
# loss 0.5); the others say their reason, and benchmarks/README.md (planted_faults.py) what was measured on planted faults.
RULES = (
    Rule(
        "rewards_shuffled", "error", {"order_differs": (1, 2)},
        ("the rewards file holds the rewards that {model} gives these responses, but in another order ({order_same:.0%} stand in their row)", MATCH),
        ("rows or responses were shuffled after scoring",),
        "run label.py again, or restore the order; evaluate.py inspect shows texts and rewards side by side",
    ),
    Rule(
        "rewards_shuffled", "error", {"label_noise": (0.4, 0.6)},
        ("gold's rewards contradict {label_noise:.0%} of the training labels: they know nothing of each other", ACCURACY, MATCH),
        ("gold's rewards stand in another order than the responses", "the labels were drawn at random"),
        "label the responses again (label.py), then preprocess.py and train.py",
    ),
    Rule(
        "labels_flipped", "error", {"label_noise": (0.6, 1.01)}, ("gold likes the rejected side better in {label_noise:.0%} of {with_gold:,} training pairs", MATCH),
        ("chosen and rejected are swapped in the training pairs", "the pairs were made from another gold model's rewards"),
        "run preprocess.py again and train again; evaluate.py validate names the pairs",
    ),
    Rule(
        "labels_flipped", "error", {"match_ties_half": (0, 0.4)}, (MATCH, ACCURACY),  # well below chance
        ("chosen and rejected swapped in the training pairs: evaluate.py validate counts the pairs that gold orders the other way",
         "the sign of one side's rewards is turned", "rewards and responses in different order in one of the files: evaluate.py inspect shows both side by side"),
        "check the response order with evaluate.py validate and inspect, run preprocess.py again, train again",
    ),
    Rule(
        "backbone_frozen", "error", {"backbone_moved": (0, 1e-12)},
        ("all {backbone_tensors:.0f} backbone weights compared are those of {start}: only the head was trained", ACCURACY, "a linear probe on the same features reaches {probe_match:.3f}"),
        ("requires_grad was off, or the optimizer was given the head alone",),
        "train all weights",
    ),
    Rule(
        "backbone_frozen", "error", {"grad_norm_backbone_max": (0, 1e-12)}, ("the backbone's gradient was 0 in every step", ACCURACY),
        ("requires_grad was off", "the hidden state was detached before the head"), "train all weights",
    ),
    Rule(
        "bf16_updates_lost", "error", {"lost_updates": (0.5, INF), "update_kept": (-INF, 0.8)} | FALLS_SHORT,  # stochastic rounding keeps 1.0
        ("{lost_updates:.0%} of the weights' updates vanished in rounding, only {update_kept:.0%} of the way that AdamW wanted to go was covered", RANGES, MATCH),
        ("weights kept in pure bf16 (--precision bf16): a weight of 0.02 cannot hold a step of 1e-5",),
        "train with --precision mixed (float32 weights, bf16 compute) or bf16-sr; a higher rate or more epochs alone cure less",
    ),
    Rule(
        "chat_template_missing", "error", {"explained_by_plain": (1, 2)},
        ("the rewards are exactly what {model} gives the plain text without its chat template", MATCH),
        ("scored as plain text: the template was not applied",), "score again with label.py, which applies the tokenizer's chat template",
    ),
    Rule(
        "chat_template_missing", "error", {"plain_gain": (0.05, INF), "plain_gain_z": (3, INF)},  # 3 standard errors, and worth it
        ("on its training pairs the model is right in {plain_accuracy:.3f} without the chat template, in {read_accuracy:.3f} with it",),
        ("trained on plain text, scored with the template",), "train with the chat template, or score without it",
    ),
    Rule(
        "chat_template_differs", "error", {"template_differs": (1, 2)}, ("{template_words}", MATCH),
        ("one stage was given another --chat-template, or the tokenizer's was edited between them",),
        "use one chat template for sampling, training and scoring; `template_sha256` in the run files tells them apart",
    ),
    Rule(
        "wrong_scored_token", "error", {"explained_by_token": (1, 2)},
        ("the rewards are what the head gives {explained_token}, not at the last token of the rendered text", MATCH),
        ("pad = eos: the last token that is not a pad is then the one before EOS", "the row was padded and its last position was read"),
        "score with label.py, which knows each conversation's length; give the tokenizer a pad token that is not its EOS",
    ),
    Rule(
        "wrong_scored_token", "error", {"token_gain": (0.05, INF), "token_gain_z": (3, INF)},
        ("on its training pairs the model is right in {token_accuracy:.3f} if the head reads {token_words}, in {read_accuracy:.3f} at the last token of the rendered text",),
        ("trained with another scored token: a pad, or the token before EOS",),
        "train again with train.py, which scores the last token of the rendered text, whatever the pad token is",
    ),
    Rule(
        "wrong_scored_token", "error", {"pad_is_last": (1, 2)},
        ("the pad token is the token that closes the rendered text (id {pad_id:.0f}): transformers and vLLM score the token before it",),
        ("pad = eos in config.json",), "set another pad_token_id in config.json and the tokenizer; train.py does so when it saves",
    ),
    Rule(
        "closing_token_cut", "error", {"explained_by_cut": (1, 2)},
        ("the rewards are what the head gives conversations cut at {cut_at:.0f} tokens, before the closing token ({cut_share:.0%} are longer)", MATCH),
        ("truncated from the right when scored: the scored token lies in the middle of the response",),
        "raise --max-length; label.py shortens the response and keeps the template's closing tokens",
    ),
    Rule(
        "closing_token_cut", "error", {"cut_gain": (0.05, INF), "cut_gain_z": (3, INF)},
        ("on its training pairs the model is right in {cut_accuracy:.3f} if they are cut at {cut_words} tokens, in {read_accuracy:.3f} at the last token of the rendered text",),
        ("trained on truncated conversations: the head never saw the closing token of the long ones",),
        "raise --max-length and train again; train.py leaves out pairs that are too long instead of cutting them",
    ),
    Rule(
        "closing_token_cut", "error", {"dropped_share": (0.1, 1.01)},
        ("{dropped_share:.0%} of the training pairs are longer than --max-length {max_length:.0f} and were left out, as cutting them would cut the closing token", ACCURACY),
        ("--max-length is too small for this data",), "raise --max-length to at least the longest conversation",
    ),
    Rule(
        "dropout_left_on", "error", {"twin_gap": (0.02, INF), "order_differs": (0, 1)},
        ("identical responses to one prompt get rewards that differ, by {twin_gap:.2f} of the margins' spread ({twins:.0f} such pairs)", "they agree with a second scoring to a correlation of {reproduced:.3f}", MATCH),
        ("the model was scored in training mode: dropout is on (model.eval() is missing)",),
        "score in evaluation mode: label.py and evaluate.py do",
    ),
    Rule(
        "dropout_left_on", "warning", {"config_dropout": (1e-9, INF), "train_accuracy": (0, 0.95)},
        ("config.json asks for a dropout of {config_dropout:g}: a trainer that follows it compares two rewards under different noise", ACCURACY, MATCH),
        ("the base model was configured with dropout for its own training",), "train with dropout 0, as train.py does",
    ),
    Rule(
        "noisy_labels", "error", {"label_noise": (0.05, 0.4)},
        ("gold likes the rejected side better in {label_noise:.1%} of {with_gold:,} training pairs: the best loss on such labels is {least_loss:.3f}", "training loss {train_loss:.3f}", ACCURACY, MATCH),
        ("labels flipped or made by another judge: evaluate.py validate names the pairs",), "make the pairs again with preprocess.py, or train with --label-smoothing {label_noise:.2f}",
    ),
    Rule(
        "rewards_overcentred", "error", {"margin_std_ratio": (0, 0.5), "rank_correlation": (0.6, INF), "best_scale": (2, INF), "train_accuracy": (0.8, INF), "centring_gap": (0.15, INF)},
        ("the order is right (rank correlation with gold {rank_correlation:.2f}, training accuracy {train_accuracy:.3f}) but margins would fit best {best_scale:.1f} times wider; the loss, {train_loss:.3f}, is {centring_gap:.2f} above what the accuracy allows", RANGES),
        ("a term such as (r_chosen + r_rejected)^2 pulls all rewards to 0: with it the spread pays, the order does not",),
        "lower its coefficient, or use --centring, which moves the common offset alone",
    ),
    Rule(
        "gold_saturated", "error", {"gold_at_ends": (0.1, 0.95)},  # some 1% for an honest head; all of them: two values, below
        ("{gold_at_ends:.0%} of gold's rewards lie within 1% of the range from its ends ({gold_min:.2f} and {gold_max:.2f})",),
        ("squashed by a sigmoid (problem_type is not regression in its config.json)", "clipped"), "use gold's raw logits (label.py): a saturated reward hides the differences that the proxy must learn",
    ),
    Rule(
        "gold_nearly_constant", "error", {"gold_tie_share": (0.3, 1.01)}, ("gold gives both responses the same reward in {gold_tie_share:.0%} of the pairs", "gold's rewards {gold_min:.2f} to {gold_max:.2f} (std {gold_std:.3f})"),
        ("gold's rewards were rounded or clipped", "the responses hardly differ: look at the sampling temperature"),
        "score again with a float32 head (label.py), or sample more different responses: nothing can be learned from ties",
    ),
    Rule(
        "gold_nearly_constant", "error", {"gold_margin_std": (0, 0.05)},  # log-odds: at 0.05 gold would bet 51 to 49
        ("gold's margins have a std of {gold_margin_std:.4f}: in log-odds it is no more sure than 51 to 49", "rewards {gold_min:.3f} to {gold_max:.3f}"),
        ("not a reward model's raw output", "the wrong column or scale"), "use gold's raw logits (label.py)",
    ),
    Rule(
        "reward_depends_on_company", "error", {"company_gap": (0.1, INF)},
        ("the same conversation gets another reward in other company: packed, alone, padded on the left or on the right differ by up to {company_gap:.2f} of the margins' spread",),
        ("attention reaches tokens of other rows or pads, or positions count the pads", "the folder's config.json differs from what was trained"), "compare --layout packed with padded; look at the attention mask and position ids",
    ),
    Rule(
        "duplicate_prompts", "warning", {"duplicate_share": (0.01, 1.01)},
        ("{duplicate_share:.1%} of the test prompts are also training prompts: the match is too good by what was learned by heart", MATCH),
        ("the test set was drawn from the training set",), "remove them from one side and train again",
    ),
    Rule(
        "rewards_shuffled", "error", {"train_accuracy": (0.65, INF), "match_low": (0, 0.5), "match_ties_half": (0.4, INF)},
        ("the training pairs were learned but nothing of it holds on test prompts", ACCURACY, MATCH, "a linear probe reaches {probe_match:.3f} on the same gold"),
        ("gold's test rewards, or the proxy's, stand in another order than the responses", "the training labels were shuffled: learned by heart, worth nothing"),
        "evaluate.py inspect and validate on both splits; label again what does not fit", last_resort=True,
    ),
    Rule(
        "learning_rate_too_low", "error", {"update_ratio": (0, 3e-4)} | FALLS_SHORT,  # a 4B model at 5e-5 is near 1e-3, at 5e-6 near 1e-4
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("the rate is too low for these weights and this many steps: all updates arrive ({lost_updates:.0%} lost), they are just small",), TRAIN_LONGER, last_resort=True,
    ),
    Rule(
        "noisy_labels", "error", {"epochs": (2, INF), "update_ratio": (5e-4, INF), "train_accuracy": (0, 0.9), "best_scale": (0, 0.9)} | FALLS_SHORT,
        ("at a rate that moves the weights ({update_ratio:.1e} of their norm a step) the labels are learned by heart, slowly (the loss fell by {loss_fell:.3f} in the last quarter), and on test prompts the margins are surer than right (best {best_scale:.2f} times as wide)", ACCURACY, MATCH),
        ("many labels are wrong: gold's rewards of the training responses, where at hand, tell how many", "too few prompts for what gold judges by"),
        "evaluate.py validate with gold's rewards; --label-smoothing, or better labels", last_resort=True,
    ),
    Rule(
        "learning_rate_too_low", "error", {"epochs": (2, INF), "steps": (100, INF), "train_accuracy": (0, 0.9)} | FALLS_SHORT,
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("the rate is too low: each pair was seen {epochs:.0f} times and is still not learned",), TRAIN_LONGER, last_resort=True,
    ),
    Rule(
        "too_few_epochs", "error", {"update_ratio": (3e-4, INF), "train_accuracy": (0, 0.9)} | FALLS_SHORT,
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("too few steps: the rate moves the weights, but there was no time",), "train --epochs 2 or more", last_resort=True,
    ),
    Rule(
        "too_few_epochs", "warning", {"epochs": (0, 2), "update_ratio": (3e-4, INF), "train_accuracy": (0, 0.9), "match": (0, 0.8)},
        (STEPS, ACCURACY, MATCH), ("each pair was seen once, and the model was still learning",), "train --epochs 2 or more", last_resort=True,
    ),
    Rule(
        "compressed_rewards", "error", {"margin_std_ratio": (0, 0.5)},  # healthy runs measured 0.55 to 1.3
        ("margins within a prompt spread {margin_std_ratio:.2f} times as wide as gold's (healthy: 0.5 to 2)", RANGES, MATCH,
         "margins {best_scale:.1f} times as wide would fit best: near 1 it is as sure as its match allows and has learned too little, far above 1 it knows more than it says"),
        ("learning rate too low for the number of steps: the loss is still falling at the end, training accuracy is low too",
         "weights trained in pure bf16: small updates are rounded away, most weights are unchanged after training",
         "too few epochs: the same run goes on improving when it is trained longer",
         "noisy labels: with a share e flipped the best margin is log((1 - e) / e), 1.4 for 20%; training accuracy stays under 1 - e",
         "chat template or closing token missing at scoring: training accuracy is fine (evaluate.py quality), the test is not",
         "rewards centred by an extra loss term: the rank correlation with gold is high although the spread is small, and far wider margins would fit"),
        "increase learning rate and epochs: " + TRAIN_LONGER + "; keep float32 weights with bf16 compute; then compare evaluate.py quality and match",
    ),
    Rule(
        "random_match", "error", {"match_ties_half": (0.4, INF), "match_low": (0, 0.5)}, (MATCH, ACCURACY),
        ("the model has not learned: training accuracy (evaluate.py quality) is near 0.5 too",
         "rewards shuffled against responses: training accuracy is high, or evaluate.py validate finds pairs gold orders the other way",
         "the wrong token is scored, or the chat template differs between training and scoring: evaluate.py inspect shows both"),
        "check the data first (evaluate.py validate, inspect), then " + TRAIN_LONGER,
    ),
    Rule(
        "low_match", "error", {"match_low": (0.5, INF), "match": (0, 0.7)}, (MATCH, ACCURACY, "rank correlation of margins {rank_correlation:.2f}", "a linear probe on frozen features reaches {probe_match:.3f}, length alone {length_match:.3f}"),
        ("training failed: training accuracy (evaluate.py quality) is low too",
         "it does not generalise: training accuracy is high, match is not",
         "scored otherwise than trained (template, closing token, truncation): evaluate.py inspect"),
        "check training accuracy first (evaluate.py quality --num-samples 500); where it is low, " + TRAIN_LONGER,
    ),
    Rule(
        "low_match", "warning", {"match_low": (0.5, INF), "match": (0.7, 0.8)}, (MATCH, ACCURACY, "rank correlation of margins {rank_correlation:.2f}", "a linear probe on frozen features reaches {probe_match:.3f}, length alone {length_match:.3f}"),
        ("too little training: training accuracy (evaluate.py quality) is below 0.95 too",
         "it does not generalise: training accuracy is high, match is not; more prompts help, more epochs do not",
         "many pairs between which gold hardly chooses: match is low only at small gold margins"),
        "check training accuracy (evaluate.py quality --num-samples 500); where it is low, " + TRAIN_LONGER,
    ),
    Rule(
        "training_failed", "error", {"train_accuracy": (0, 0.7)}, (ACCURACY, "training loss {train_loss:.3f} (should end below 0.3)"),
        ("learning rate too low, or too few epochs: the loss is still falling at the end",
         "the wrong token is scored, or the text is cut before it: evaluate.py inspect shows it",
         "labels at odds with the texts: evaluate.py validate"),
        "verify the data format (evaluate.py validate, inspect), then " + TRAIN_LONGER,
    ),
    Rule(
        "not_learning", "error", {"train_accuracy": (0.7, 0.8)}, (ACCURACY, "training loss {train_loss:.3f} (should end below 0.3)"),
        ("learning rate too low, or too few epochs: the loss is still falling at the end", "noisy labels: the loss has stopped falling well above 0.3"),
        "check hyperparameters: " + TRAIN_LONGER,
    ),
    Rule(
        "loss_not_decreasing", "warning", {"train_loss": (0.5, INF)}, ("training loss {train_loss:.3f} (0.693 is no opinion; should end below 0.3)", ACCURACY),
        ("learning rate too low: the gradient norm is healthy and the loss falls slowly", "data format: evaluate.py validate and inspect", "labels that are noise"),
        "check learning rate, verify data format; " + TRAIN_LONGER,
    ),
    Rule(
        "poor_generalization", "warning", {"train_accuracy": (0.9, INF), "match": (0.4, 0.75)}, (ACCURACY, MATCH),  # healthy: 0.95 and 0.83
        ("scored otherwise than trained: another chat template, no closing token; evaluate.py inspect on both",
         "learned by heart: too many epochs on too few prompts",
         "test responses from another model than the training responses"),
        "high training accuracy with low test accuracy is a generalization issue: compare the rendered texts first, then add prompts or train fewer epochs",
    ),
    Rule(
        "overdispersed_rewards", "warning", {"margin_std_ratio": (2, INF)},
        ("margins within a prompt spread {margin_std_ratio:.2f} times as wide as gold's (healthy: 0.5 to 2)", RANGES),
        ("too many epochs, or too high a rate: training accuracy near 1, surer than its match allows",
         "gold's unit is not log-odds (a scaled score): then the ratio says nothing, the match does"),
        "train fewer epochs or at a lower rate; judge by match on held-out prompts",
    ),
    Rule(
        "tied_rewards", "warning", {"proxy_tie_share": (0.02, 1.01)},
        ("{proxy_ties:,} of {compared:,} pairs tie under the proxy though gold chooses ({proxy_tie_share:.1%}); {proxy_bf16_share:.0%} of its rewards are bf16 values",),
        ("a head in bf16 with compressed rewards: steps of 0.03 at 4 to 8, 0.06 at 8 to 16",
         "identical tokens: the texts differ only where they were cut"),
        "score with a float32 head (label.py and evaluate.py do), or look at --max-length",
    ),
)  # fmt: skip


def findings(numbers: dict) -> list[dict]:
    """The faults that the numbers show, worst first, then in the order of RULES: id, severity, evidence, causes, advice.
    Empty for a healthy model. A rule whose numbers were not measured says nothing, and no fault is named twice."""
    n = numbers | derived(numbers)
    hit = [rule for rule in RULES if all(n.get(name) is not None and low <= n[name] < high for name, (low, high) in rule.when.items())]
    explained = any(rule.id not in SYMPTOMS and not rule.last_resort and rule.severity == "error" for rule in hit)
    guesses = [rule for rule in hit if rule.last_resort]
    hit = [rule for rule in hit if not rule.last_resort or (rule is guesses[0] and not explained)]
    first: dict[str, Rule] = {}
    for rule in sorted(hit, key=lambda rule: SEVERITIES.index(rule.severity)):
        first.setdefault(rule.id, rule)
    return [dict(id=rule.id, severity=rule.severity, evidence=_evidence(rule, n), causes=[_fill(cause, n) for cause in rule.causes], advice=_fill(rule.advice, n)) for rule in first.values()]


def derived(n: dict) -> dict:
    """What rules share: falls_short, 1 where the model misses what a finished one reaches (match 0.75, half of gold's spread,
    training accuracy 0.8 or loss 0.5); centring_gap, the loss above the entropy of its accuracy, nats."""

    def at(name, otherwise):
        return otherwise if n.get(name) is None else n[name]

    short = at("margin_std_ratio", 1) < 0.5 or at("match", 1) < 0.75 or at("train_accuracy", 1) < 0.8 or at("train_loss", 0) > 0.5
    found = {"falls_short": float(short)}
    if n.get("train_accuracy") is not None and n.get("train_loss") is not None:
        found["centring_gap"] = n["train_loss"] - least_loss(1 - n["train_accuracy"])
    return found


def _evidence(rule: Rule, numbers: dict) -> str:
    return "; ".join(_fill(clause, numbers) for clause in rule.evidence if _known(clause, numbers))


def _known(clause: str, numbers: dict) -> bool:
    return all(numbers.get(name) is not None for _, name, _, _ in Formatter().parse(clause) if name)


def _fill(text: str, numbers: dict) -> str:
    """The text with its numbers; as it stands where one was not measured."""
    return text.format(**numbers) if _known(text, numbers) else re.sub(r" \([^()]*\{[^()]*\)", "", text)
