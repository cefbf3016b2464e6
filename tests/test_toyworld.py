"""The toy world: the rule by hand, right against wrong, a tokenizer like Qwen's, one more layer that changes nothing."""

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

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def grammar():
    return _example("toygrammar")


@pytest.fixture(scope="module")
def world():
    return _example("toyworld")


def _example(name):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def tokenizer(world, grammar):
    rng = random.Random(0)
    return world.build_tokenizer(message["content"] for task in grammar.draw_tasks(2000, rng) for message in world.answered(task, world.any_answer(task, rng)))


# ---- the rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, points",
    [
        ("4, 5, 6, 7.", 5.5),  # 3 for all four items, 1 for no fault, 0.75 and 0.75 for the two marks of form
        ("here you are: 4, 5, 6, 7", 2.5),  # the same facts without form: 4 - 1.5
        ("4, 5, 7.", 3.75),  # three of four items: 2.25 + 1.5
        ("4, 5, 5, 6, 7.", 3.75),  # one too many: 3/4 of 3, + 1.5
        ("Of course! 4, 5, 6, 7. I hope this helps.", 4.9),  # 10 words, 8 are free: 5.5 - 0.6
        ("9, 10, 11.", -0.75),  # three wrong: -2.25, + 1.5
        ("I do not know.", 1.5),  # nothing named: form alone
    ],
)
def test_the_rule_by_hand(grammar, answer, points):
    task = grammar.Task("Count from 4 to 7.", ("{}",), ("4", "5", "6", "7"), ())
    assert grammar.rule(task, answer) == pytest.approx(points)


def test_any_different_members_will_do_where_the_question_leaves_it_open(grammar):
    task = grammar.Task("Name 2 animals.", ("{}",), ("cat", "dog"), (), allowed=grammar.KINDS["animal"])
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
    phrases += [form.format("") + " " + task.join for kind in grammar.KINDS_OF_TASK for task in [kind(rng)] for form in task.forms]
    assert not {word for phrase in phrases for word in re.findall("[a-z0-9]+", phrase.lower())} & grammar.ITEMS


def test_held_out_questions_stay_out(grammar):
    rng, taken = random.Random(3), set()
    test, train = (grammar.draw_new_tasks(number, rng, taken) for number in (300, 600))
    questions = [task.question for task in test + train]
    assert len(set(questions)) == 900
    held_out = {task.question for task in test}
    assert not held_out & {task.question for task in grammar.draw_tasks(3000, rng, held_out)}


# ---- tokenizer and models --------------------------------------------------------------------------------------


def test_the_template_is_chatml_and_its_generation_prompt_is_where_the_answer_begins(tokenizer, world, grammar):
    task = grammar.Task("Add 3 and 4.", ("{}",), ("7",), ())
    text = tokenizer.apply_chat_template(world.answered(task, "7."), tokenize=False)
    assert text == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nAdd 3 and 4.<|im_end|>\n<|im_start|>assistant\n7.<|im_end|>\n"
    prompt = tokenizer.apply_chat_template(world.prompt(task), tokenize=False, add_generation_prompt=True)
    assert text == prompt + "7.<|im_end|>\n"


def test_special_tokens_are_single_and_the_pad_is_not_the_eos(tokenizer):
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    ids = [tokenizer.encode(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert ids == [[0], [1], [2]]
    assert tokenizer.decode(tokenizer.encode("Naïve ☃ 12 + 3?")) == "Naïve ☃ 12 + 3?"  # bytes: nothing is unknown


def test_one_more_layer_starts_as_the_identity(tokenizer, world):
    torch.manual_seed(0)
    small = world.build_sft_model(tokenizer)
    large = world.with_another_layer(small)
    assert large.config.num_hidden_layers == small.config.num_hidden_layers + 1
    tokens = torch.tensor([[1, 5, 9, 200, 2]])
    with torch.no_grad():
        assert torch.equal(small(tokens).logits, large(tokens).logits)


def test_a_world_of_a_few_prompts_stands_where_the_scripts_look_for_it(tmp_path):
    """Every file of the real world, from sizes that teach nothing."""
    sizes = "--train-prompts 6 --test-prompts 4 --sft-conversations 64 --twin-pairs 8 --noisy-pairs 8 --sampled-prompts 3 --dataset mini".split()
    environment = os.environ | {"RMOOD_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / "examples/toyworld.py"), *sizes], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, test = (json.loads((tmp_path / "datasets/mini" / file).read_text()) for file in ("rm/rm_prompts.json", "test/test_prompts.json"))
    assert (len(train), len(test)) == (6, 4)
    assert [message["role"] for message in train[0]["messages"]] == ["system", "user"] and train[0]["messages"][0]["content"] == ""
    sft, gold = (json.loads((tmp_path / "models" / name / "config.json").read_text()) for name in ("mini-sft", "mini-gold"))
    assert (sft["architectures"], gold["architectures"]) == (["Qwen3ForCausalLM"], ["Qwen3ForSequenceClassification"])
    generation = json.loads((tmp_path / "models/mini-sft/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)
