"""A small world of instructions: tasks, right and wrong answers, and a rule that scores any answer.

    task = draw_task(rng)                 "Please: count from 4 to 7."
    ideal_answer(task, rng)               "4, 5, 6, 7."
    noisy_answer(task, rng, noise=1.0)    "Sure, here you go. Here you are: 4, 5, 7, 7"
    rule(task, answer)                    5.5 for the first, 0.6 for the second

Ten kinds of task by template. Plain Python: examples/toyworld.py turns this text into a tokenizer, an SFT model and
a gold reward model.
"""

import difflib
import itertools
import random
import re
from dataclasses import dataclass

# Words that can be an answer. Each stands in one place only, and none of them occurs in a phrase around an answer,
# so the rule can read off which things an answer names.
KINDS = {
    "animal": "cat dog horse cow sheep lion",
    "fruit": "apple pear plum cherry banana grape",
    "colour": "red blue green yellow purple brown",
    "tool": "hammer saw drill axe spade rake",
    "job": "baker doctor teacher farmer nurse pilot",
    "garment": "shirt coat hat sock glove scarf",
}
KINDS = {kind: tuple(words.split()) for kind, words in KINDS.items()}
DAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
MONTHS = tuple("january february march april may june july august september october november december".split())
OPPOSITES = [tuple(pair.split("/")) for pair in "hot/cold big/small fast/slow old/new wet/dry full/empty hard/soft loud/quiet rich/poor high/low".split()]
NAMES = tuple("anna ben clara david emma felix".split())
THINGS = tuple("river moon garden forest bridge window candle island".split())
PROPER = {*DAYS, *MONTHS, *NAMES}  # written with a capital
ITEMS = {*KINDS, *DAYS, *MONTHS, *NAMES, *THINGS, *(word for pair in OPPOSITES for word in pair), *(word for words in KINDS.values() for word in words)}

POLITE = "{}", "Please do this for me: {}", "Hello there! {}", "{} Thank you very much.", "Here is a quick task: {}", "I need a bit of help. {}"
OPENINGS = "Sure, here you go.", "Of course!", "Thanks for asking.", "That is a great question.", "I am glad to help."
CLOSINGS = "I hope this helps.", "Let me know if you need more.", "Have a nice day!", "Is there anything else?"
REFUSALS = "I do not know.", "Sorry, I cannot help with that.", "I am not sure about this."


@dataclass(frozen=True)
class Task:
    """question: what the user says. forms: ways to say the answer, {} being the items put together with `join`.
    wanted: the items of a right answer, in order. allowed: where given, any len(wanted) different ones of them will do.
    wrong: what a mistaken answer may name instead."""

    question: str
    forms: tuple[str, ...]
    wanted: tuple[str, ...]
    wrong: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    join: str = ", "


# ---- ten kinds of task -----------------------------------------------------------------------------------------

LISTED = "{}", "Here you are: {}", "The numbers are {}"
SINGLE = "{}", "It is {}", "The answer is {}"


def _near(*numbers: int) -> tuple[str, ...]:
    """Numbers someone might say by mistake."""
    return tuple(str(number + off) for number in numbers for off in (-3, -2, -1, 1, 2, 3) if number + off > 0)


def count_up(rng):
    a, n = rng.randint(1, 12), rng.randint(3, 5)
    ask = rng.choice(["Count from {} to {}.", "List the numbers from {} to {}.", "Write every number from {} up to {}."])
    numbers = range(a, a + n)
    return Task(ask.format(a, a + n - 1), LISTED, tuple(map(str, numbers)), _near(*numbers))


def count_down(rng):
    a, n = rng.randint(5, 16), rng.randint(3, 5)
    ask = rng.choice(["Count down from {} to {}.", "Count backwards from {} to {}.", "List the numbers from {} down to {}."])
    numbers = range(a, a - n, -1)
    return Task(ask.format(a, a - n + 1), LISTED, tuple(map(str, numbers)), _near(*numbers))


def repeat(rng):
    word, n = rng.choice(THINGS), rng.randint(2, 4)
    ask = rng.choice(["Say the word {} {} times.", "Repeat {} {} times.", "Write the word {} exactly {} times."])
    return Task(ask.format(word, n), ("{}", "Here you are: {}"), (word,) * n, tuple(thing for thing in THINGS if thing != word), join=" ")


def name_some(rng):
    kind, n = rng.choice(list(KINDS)), rng.randint(2, 3)
    ask = rng.choice(["Name {} {}s.", "List {} {}s.", "Give me {} different {}s.", "I want to hear {} {}s."])
    strangers = tuple(word for other, words in KINDS.items() if other != kind for word in words)
    return Task(ask.format(n, kind), ("{}", "Some are {}", "Here you are: {}"), tuple(rng.sample(KINDS[kind], n)), strangers, KINDS[kind])


def neighbour(rng):
    circle, (side, step) = rng.choice([DAYS, MONTHS]), rng.choice([("after", 1), ("before", -1)])
    i = rng.randrange(len(circle))
    ask = rng.choice(["What comes {} {}?", "Which {unit} is right {} {}?", "Name the {unit} {} {}."])
    answer = circle[(i + step) % len(circle)]
    question = ask.format(side, circle[i].title(), unit="day" if circle is DAYS else "month")
    return Task(question, SINGLE, (answer,), tuple(word for word in circle if word != answer))


def add(rng):
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    ask = rng.choice(["What is {} plus {}?", "Add {} and {}.", "How much is {} + {}?"])
    return Task(ask.format(a, b), ("{}", "The sum is {}", "The answer is {}"), (str(a + b),), _near(a + b))


def larger(rng):
    a, b = rng.sample(range(1, 20), 2)
    ask = rng.choice(["Which is larger, {} or {}?", "Which number is bigger: {} or {}?", "Tell me the larger of {} and {}."])
    return Task(ask.format(a, b), ("{}", "It is {}", "The larger one is {}"), (str(max(a, b)),), (str(min(a, b)),))


def opposite(rng):
    word, answer = rng.sample(rng.choice(OPPOSITES), 2)
    ask = rng.choice(["What is the opposite of {}?", "Name the opposite of {}.", "Which word means the opposite of {}?"])
    return Task(ask.format(word), ("{}", "It is {}", "The opposite is {}"), (answer,), tuple(w for pair in OPPOSITES for w in pair if w != answer))


def a_or_b(rng):
    kind, other = rng.sample(list(KINDS), 2)
    word, (a, b) = rng.choice(KINDS[kind]), rng.sample([kind, other], 2)
    ask = rng.choice(["What is {}: {} or {}?", "Does {} belong to {} or {}?", "Choose for {}: {} or {}."])
    return Task(ask.format(word, a, b), SINGLE, (kind,), (other,))


def greet(rng):
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    ask = rng.choice(["Greet {} and mention the {}.", "Write a greeting to {} with the word {}.", "Say hello to {} and name the {}."])
    return Task(ask.format(name.title(), thing), ("Hello {}", "Good morning {}"), (name, thing), NAMES + THINGS, join=", enjoy the ")


KINDS_OF_TASK = count_up, count_down, repeat, name_some, neighbour, add, larger, opposite, a_or_b, greet


def draw_task(rng: random.Random) -> Task:
    task = rng.choice(KINDS_OF_TASK)(rng)
    return Task(**{**vars(task), "question": rng.choice(POLITE).format(task.question)})


def draw_tasks(number: int, rng: random.Random, held_out: set[str] = frozenset()) -> list[Task]:
    """Tasks whose questions are not held out; a question may come twice."""
    tasks = (draw_task(rng) for _ in itertools.count())
    return list(itertools.islice((task for task in tasks if task.question not in held_out), number))


def draw_new_tasks(number: int, rng: random.Random, taken: set[str]) -> list[Task]:
    """Tasks with different questions, none of which is in `taken`; they are added to it."""
    tasks = []
    while len(tasks) < number:
        task = draw_task(rng)
        if task.question not in taken:
            taken.add(task.question)
            tasks.append(task)
    return tasks


# ---- answers ---------------------------------------------------------------------------------------------------


def ideal_answer(task: Task, rng: random.Random) -> str:
    return _say(task, task.wanted, rng.choice(task.forms))


def noisy_answer(task: Task, rng: random.Random, noise: float) -> str:
    """An answer with things wrong in it, the more the higher the noise (0 to 1)."""
    def happens(chance: float) -> bool:
        return rng.random() < chance * noise

    if happens(0.08):
        return rng.choice(REFUSALS)
    answer = _say(task, spoil(task, rng) if happens(0.35) else task.wanted, rng.choice(task.forms))
    return _style(answer, rng, happens)


def twins(task: Task, rng: random.Random, noise: float) -> tuple[str, str]:
    """Two answers alike in all but their items: a right one and a wrong one."""
    form, seed = rng.choice(task.forms), rng.random()
    answers = []
    for items in (task.wanted, spoil(task, rng)):
        same = random.Random(seed)
        answers.append(_style(_say(task, items, form), same, lambda chance: same.random() < chance * noise))
    return answers[0], answers[1]


def spoil(task: Task, rng: random.Random) -> tuple[str, ...]:
    """The items with one mistake: another one, one too many, and in a list one missing or one twice."""
    items, i = list(task.wanted), rng.randrange(len(task.wanted))
    mistake = rng.choice(["other", "other", "extra", "missing", "twice"] if len(items) > 1 else ["other", "other", "other", "extra"])
    if mistake == "other":
        items[i] = rng.choice([word for word in task.wrong if word != items[i]])
    elif mistake == "extra":
        items.insert(i + 1, rng.choice(task.wrong))
    elif mistake == "missing":
        del items[i]
    else:
        items.insert(i, items[i])
    return tuple(items)


def _say(task: Task, items: tuple[str, ...], form: str) -> str:
    text = form.format(task.join.join(item.title() if item in PROPER else item for item in items))
    return text[0].upper() + text[1:] + "."


def _style(answer: str, rng: random.Random, happens) -> str:
    if happens(0.4):
        answer = answer[0].lower() + answer[1:]
    if happens(0.4):
        answer = answer.removesuffix(".")
    if happens(0.1):
        answer = f"{answer} {answer}"
    if happens(0.4):
        answer = f"{rng.choice(OPENINGS)} {answer}"
    if happens(0.4):
        answer = f"{answer} {rng.choice(CLOSINGS)}"
    return answer


# ---- the rule --------------------------------------------------------------------------------------------------


def rule(task: Task, answer: str) -> float:
    """What an answer is worth, -7 to 5.5. Facts count most: a right answer in the worst style (0) beats a wrong one in the
    best (-1.5).

    correctness   -3 to 4       3 times the share of right items less that of wrong ones; and 1 more for an answer without a fault
    brevity       -2.5 to 0     -0.3 a word beyond the items and four words around them
    format        -1.5 to 1.5   0.75 each for the capital at the start and the mark at the end
    """
    words = re.findall(r"[a-z]+|[0-9]+", answer.lower())
    named = [word for word in words if word.isdigit() or word in ITEMS]
    if task.allowed:
        right = min(len(set(named) & set(task.allowed)), len(task.wanted))
    else:  # in order: the longest stretches in common
        right = sum(block.size for block in difflib.SequenceMatcher(None, named, task.wanted, autojunk=False).get_matching_blocks())
    wrong = len(named) - right
    correctness = max(-3.0, 3.0 * (right - wrong) / len(task.wanted)) + (right == len(task.wanted) and not wrong)
    brevity = max(-2.5, -0.3 * max(0, len(words) - len(task.wanted) - 4))
    form = 0.75 * (1 if answer[:1].isupper() or answer[:1].isdigit() else -1) + 0.75 * (1 if answer.rstrip()[-1:] in tuple(".!?") else -1)
    return correctness + brevity + form
