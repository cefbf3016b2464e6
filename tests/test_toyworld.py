"""The toy world: the rule by hand, right against wrong, a tokenizer like Qwen's, one more layer."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

EXAMPLES = str(REPOSITORY / "examples")


@pytest.fixture(scope="module")
def grammar():
    return _example("toygrammar")


@pytest.fixture(scope="module")
def world():
    return _example("toyworld")


def _example(name):
    sys.path.insert(0, EXAMPLES)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(EXAMPLES)


@pytest.fixture(scope="module")
def tokenizer(world, grammar):
    rng = random.Random(0)
    tasks = grammar.draw_tasks(2000, rng)
    conversations = [world.answered(task, world.any_answer(task, rng)) for task in tasks]
    return world.build_tokenizer(world.contents(conversations))


# ---- the rule ----


@pytest.mark.parametrize(
    "answer, points",
    [
        # 3 for all four items, 1 for no mistake, 0.75 each for the capital and the mark
        ("4, 5, 6, 7.", 5.5),
        # the same facts in bad form: 4 - 1.5
        ("here you are: 4, 5, 6, 7", 2.5),
        # three of four items: 2.25 + 1.5
        ("4, 5, 7.", 3.75),
        # one too many: 3/4 of 3, + 1.5
        ("4, 5, 5, 6, 7.", 3.75),
        # 10 words, 8 are free: 5.5 - 0.6
        ("Of course! 4, 5, 6, 7. I hope this helps.", 4.9),
        # three wrong: -2.25, + 1.5
        ("9, 10, 11.", -0.75),
        # nothing named: form alone
        ("I do not know.", 1.5),
    ],
)
def test_the_rule_by_hand(grammar, answer, points):
    task = grammar.Task("Count from 4 to 7.", ("{}",), ("4", "5", "6", "7"), ())
    assert grammar.rule(task, answer) == pytest.approx(points)


def test_any_different_members_will_do_where_the_question_leaves_it_open(grammar):
    task = grammar.Task(
        "Name 2 animals.", ("{}",), ("cat", "dog"), (), allowed=grammar.KINDS["animal"]
    )
    assert grammar.rule(task, "Horse, cow.") == 5.5
    assert grammar.rule(task, "Horse, horse.") == 3 * (1 - 1) / 2 + 1.5  # one right, one too many
    assert grammar.rule(task, "Horse, hammer.") == 1.5


def test_facts_count_more_than_style(grammar):
    """Single answers: right in the worst style 0, wrong in the best style -1.5."""
    task = grammar.Task("What is 3 plus 4?", ("{}",), ("7",), ("8",))
    worst = "thanks for asking. the answer is 7 let me know if you need more and more and more"
    assert grammar.rule(task, worst) == pytest.approx(4 - 2.5 - 1.5)
    assert grammar.rule(task, "It is 8.") == pytest.approx(-3 + 1.5)


def test_ideal_answers_have_full_marks_and_of_twins_the_right_one_wins(grammar):
    rng = random.Random(1)
    tasks = [kind(rng) for kind in grammar.KINDS_OF_TASK for _ in range(50)]
    assert {grammar.rule(task, grammar.ideal_answer(task, rng)) for task in tasks} == {5.5}
    for task in tasks:
        right, wrong = grammar.twins(task, rng, noise=0.0)
        assert grammar.rule(task, right) > grammar.rule(task, wrong), (task.question, right, wrong)


def test_no_phrase_around_an_answer_names_an_item(grammar):
    rng = random.Random(2)
    phrases = [*grammar.OPENINGS, *grammar.CLOSINGS, *grammar.REFUSALS]
    for kind in grammar.KINDS_OF_TASK:
        task = kind(rng)
        phrases += [form.format("") + " " + task.join for form in task.forms]
    words = set(re.findall("[a-z0-9]+", " ".join(phrases).lower()))
    assert not words & grammar.ITEMS


def test_held_out_questions_stay_out(grammar):
    rng = random.Random(3)
    taken = set()
    test = grammar.draw_new_tasks(300, rng, taken)
    train = grammar.draw_new_tasks(600, rng, taken)
    assert len({task.question for task in test + train}) == 900
    held_out = {task.question for task in test}
    assert not held_out & {task.question for task in grammar.draw_tasks(3000, rng, held_out)}


# ---- tokenizer and models ----


def test_the_template_is_chatml_and_the_answer_begins_after_the_generation_prompt(
    tokenizer, world, grammar
):
    task = grammar.Task("Add 3 and 4.", ("{}",), ("7",), ())
    text = tokenizer.apply_chat_template(world.answered(task, "7."), tokenize=False)
    assert text == (
        "<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\nAdd 3 and 4.<|im_end|>\n"
        "<|im_start|>assistant\n7.<|im_end|>\n"
    )
    prompt = tokenizer.apply_chat_template(
        world.prompt(task), tokenize=False, add_generation_prompt=True
    )
    assert text == prompt + "7.<|im_end|>\n"


def test_special_tokens_are_single_and_the_pad_is_not_the_eos(tokenizer):
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    ids = [tokenizer.encode(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert ids == [[0], [1], [2]]


def test_no_text_is_unknown_to_a_tokenizer_of_bytes(tokenizer):
    text = "Naïve ☃ 12 + 3?"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_one_more_layer_starts_as_the_identity(tokenizer, world):
    torch.manual_seed(0)
    small = world.build_sft_model(tokenizer)
    large = world.with_another_layer(small)
    assert large.config.num_hidden_layers == small.config.num_hidden_layers + 1
    tokens = torch.tensor([[1, 5, 9, 200, 2]])
    with torch.no_grad():
        assert torch.equal(small(tokens).logits, large(tokens).logits)


# ---- the script ----


def read(path: Path):
    return json.loads(path.read_text())


def test_a_world_of_a_few_prompts_is_where_the_scripts_look_for_it(tmp_path):
    """Every file of the real world, from sizes that teach nothing."""
    sizes = (
        "--train-prompts 6 --test-prompts 4 --sft-conversations 64 --twin-pairs 8 "
        "--noisy-pairs 8 --sampled-prompts 3 --dataset mini"
    )
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples/toyworld.py"), *sizes.split()],
        env=os.environ | {"RMOOD_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    train = read(tmp_path / "datasets/mini/rm/rm_prompts.json")
    test = read(tmp_path / "datasets/mini/test/test_prompts.json")
    assert (len(train), len(test)) == (6, 4)
    messages = train[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == ""

    sft = read(tmp_path / "models/mini-sft/config.json")
    gold = read(tmp_path / "models/mini-gold/config.json")
    assert sft["architectures"] == ["Qwen3ForCausalLM"]
    assert gold["architectures"] == ["Qwen3ForSequenceClassification"]
    generation = read(tmp_path / "models/mini-sft/generation_config.json")
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)
