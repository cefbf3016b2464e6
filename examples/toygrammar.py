"""A small world of instructions: tasks, right and wrong answers, and a rule that scores any answer.

    task = draw_task(rng)                 "Please: count from 4 to 7."
    ideal_answer(task, rng)               "4, 5, 6, 7."
    noisy_answer(task, rng, noise=1.0)    "Sure, here you go. Here you are: 4, 5, 7, 7"
    rule(task, answer)                    5.5 for the first, 0.6 for the second

Ten kinds of task by template. Plain Python: examples/toyworld.py turns this text into a tokenizer,
an SFT model and a gold reward model.
"""

import difflib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

# Words that can be an answer. Each belongs to one kind only, and none of them occurs in a phrase
# around an answer, so the rule can read off which items an answer names.
KINDS = {
    "animal": ("cat", "dog", "horse", "cow", "sheep", "lion"),
    "fruit": ("apple", "pear", "plum", "cherry", "banana", "grape"),
    "colour": ("red", "blue", "green", "yellow", "purple", "brown"),
    "tool": ("hammer", "saw", "drill", "axe", "spade", "rake"),
    "job": ("baker", "doctor", "teacher", "farmer", "nurse", "pilot"),
    "garment": ("shirt", "coat", "hat", "sock", "glove", "scarf"),
}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "new"),
    ("wet", "dry"),
    ("full", "empty"),
    ("hard", "soft"),
    ("loud", "quiet"),
    ("rich", "poor"),
    ("high", "low"),
]
NAMES = ("anna", "ben", "clara", "david", "emma", "felix")
THINGS = ("river", "moon", "garden", "forest", "bridge", "window", "candle", "island")

PROPER = {*DAYS, *MONTHS, *NAMES}  # written with a capital
ITEMS = {*KINDS, *DAYS, *MONTHS, *NAMES, *THINGS}.union(*KINDS.values(), *OPPOSITES)

POLITE = (
    "{}",
    "Please do this for me: {}",
    "Hello there! {}",
    "{} Thank you very much.",
    "Here is a quick task: {}",
    "I need a bit of help. {}",
)
OPENINGS = (
    "Sure, here you go.",
    "Of course!",
    "Thanks for asking.",
    "That is a great question.",
    "I am glad to help.",
)
CLOSINGS = (
    "I hope this helps.",
    "Let me know if you need more.",
    "Have a nice day!",
    "Is there anything else?",
)
REFUSALS = (
    "I do not know.",
    "Sorry, I cannot help with that.",
    "I am not sure about this.",
)


@dataclass(frozen=True)
class Task:
    """One task, with what its right and wrong answers are made of.

    question: what the user says.
    forms: ways to phrase the answer, {} being the items put together with `join`.
    wanted: the items of a right answer, in order.
    wrong: items that a mistaken answer may name instead.
    allowed: where given, any len(wanted) different ones of these are right, in any order.
    """

    question: str
    forms: tuple[str, ...]
    wanted: tuple[str, ...]
    wrong: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    join: str = ", "


# ---- ten kinds of task ----

LIST_FORMS = ("{}", "Here you are: {}", "The numbers are {}")
SINGLE_FORMS = ("{}", "It is {}", "The answer is {}")


def _near(*numbers: int) -> tuple[str, ...]:
    """Numbers that someone might say by mistake."""
    near = [number + offset for number in numbers for offset in (-3, -2, -1, 1, 2, 3)]
    return tuple(str(number) for number in near if number > 0)


def count_up(rng: random.Random) -> Task:
    first = rng.randint(1, 12)
    length = rng.randint(3, 5)
    template = rng.choice(
        [
            "Count from {} to {}.",
            "List the numbers from {} to {}.",
            "Write every number from {} up to {}.",
        ]
    )
    numbers = range(first, first + length)
    return Task(
        question=template.format(numbers[0], numbers[-1]),
        forms=LIST_FORMS,
        wanted=tuple(map(str, numbers)),
        wrong=_near(*numbers),
    )


def count_down(rng: random.Random) -> Task:
    first = rng.randint(5, 16)
    length = rng.randint(3, 5)
    template = rng.choice(
        [
            "Count down from {} to {}.",
            "Count backwards from {} to {}.",
            "List the numbers from {} down to {}.",
        ]
    )
    numbers = range(first, first - length, -1)
    return Task(
        question=template.format(numbers[0], numbers[-1]),
        forms=LIST_FORMS,
        wanted=tuple(map(str, numbers)),
        wrong=_near(*numbers),
    )


def repeat(rng: random.Random) -> Task:
    word = rng.choice(THINGS)
    times = rng.randint(2, 4)
    template = rng.choice(
        [
            "Say the word {} {} times.",
            "Repeat {} {} times.",
            "Write the word {} exactly {} times.",
        ]
    )
    return Task(
        question=template.format(word, times),
        forms=("{}", "Here you are: {}"),
        wanted=(word,) * times,
        wrong=tuple(thing for thing in THINGS if thing != word),
        join=" ",
    )


def name_some(rng: random.Random) -> Task:
    kind = rng.choice(list(KINDS))
    number = rng.randint(2, 3)
    template = rng.choice(
        [
            "Name {} {}s.",
            "List {} {}s.",
            "Give me {} different {}s.",
            "I want to hear {} {}s.",
        ]
    )
    of_other_kinds = []
    for other, words in KINDS.items():
        if other != kind:
            of_other_kinds += words
    return Task(
        question=template.format(number, kind),
        forms=("{}", "Some are {}", "Here you are: {}"),
        wanted=tuple(rng.sample(KINDS[kind], number)),
        wrong=tuple(of_other_kinds),
        allowed=KINDS[kind],
    )


def neighbour(rng: random.Random) -> Task:
    circle = rng.choice([DAYS, MONTHS])
    side, step = rng.choice([("after", 1), ("before", -1)])
    i = rng.randrange(len(circle))
    template = rng.choice(
        [
            "What comes {} {}?",
            "Which {unit} is right {} {}?",
            "Name the {unit} {} {}.",
        ]
    )
    unit = "day" if circle is DAYS else "month"
    answer = circle[(i + step) % len(circle)]
    return Task(
        question=template.format(side, circle[i].title(), unit=unit),
        forms=SINGLE_FORMS,
        wanted=(answer,),
        wrong=tuple(word for word in circle if word != answer),
    )


def add(rng: random.Random) -> Task:
    a = rng.randint(1, 9)
    b = rng.randint(1, 9)
    template = rng.choice(["What is {} plus {}?", "Add {} and {}.", "How much is {} + {}?"])
    return Task(
        question=template.format(a, b),
        forms=("{}", "The sum is {}", "The answer is {}"),
        wanted=(str(a + b),),
        wrong=_near(a + b),
    )


def larger(rng: random.Random) -> Task:
    a, b = rng.sample(range(1, 20), 2)
    template = rng.choice(
        [
            "Which is larger, {} or {}?",
            "Which number is bigger: {} or {}?",
            "Tell me the larger of {} and {}.",
        ]
    )
    return Task(
        question=template.format(a, b),
        forms=("{}", "It is {}", "The larger one is {}"),
        wanted=(str(max(a, b)),),
        wrong=(str(min(a, b)),),
    )


def opposite(rng: random.Random) -> Task:
    word, answer = rng.sample(rng.choice(OPPOSITES), 2)
    template = rng.choice(
        [
            "What is the opposite of {}?",
            "Name the opposite of {}.",
            "Which word means the opposite of {}?",
        ]
    )
    words = [item for pair in OPPOSITES for item in pair]
    return Task(
        question=template.format(word),
        forms=("{}", "It is {}", "The opposite is {}"),
        wanted=(answer,),
        wrong=tuple(other for other in words if other != answer),
    )


def a_or_b(rng: random.Random) -> Task:
    kind, other = rng.sample(list(KINDS), 2)
    word = rng.choice(KINDS[kind])
    a, b = rng.sample([kind, other], 2)
    template = rng.choice(
        [
            "What is {}: {} or {}?",
            "Does {} belong to {} or {}?",
            "Choose for {}: {} or {}.",
        ]
    )
    return Task(
        question=template.format(word, a, b),
        forms=SINGLE_FORMS,
        wanted=(kind,),
        wrong=(other,),
    )


def greet(rng: random.Random) -> Task:
    name = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    template = rng.choice(
        [
            "Greet {} and mention the {}.",
            "Write a greeting to {} with the word {}.",
            "Say hello to {} and name the {}.",
        ]
    )
    return Task(
        question=template.format(name.title(), thing),
        forms=("Hello {}", "Good morning {}"),
        wanted=(name, thing),
        wrong=NAMES + THINGS,
        join=", enjoy the ",
    )


KINDS_OF_TASK = (
    count_up,
    count_down,
    repeat,
    name_some,
    neighbour,
    add,
    larger,
    opposite,
    a_or_b,
    greet,
)


def draw_task(rng: random.Random) -> Task:
    task = rng.choice(KINDS_OF_TASK)(rng)
    question = rng.choice(POLITE).format(task.question)
    return replace(task, question=question)


def draw_tasks(number: int, rng: random.Random, held_out: set[str] = frozenset()) -> list[Task]:
    """Tasks whose questions are not held out; a question may come twice."""
    tasks = []
    while len(tasks) < number:
        task = draw_task(rng)
        if task.question not in held_out:
            tasks.append(task)
    return tasks


def draw_new_tasks(number: int, rng: random.Random, taken: set[str]) -> list[Task]:
    """Tasks with different questions, none of which is in `taken`; they are added to it."""
    tasks = []
    while len(tasks) < number:
        task = draw_task(rng)
        if task.question not in taken:
            taken.add(task.question)
            tasks.append(task)
    return tasks


# ---- answers ----


def ideal_answer(task: Task, rng: random.Random) -> str:
    return _phrase(task, task.wanted, rng.choice(task.forms))


def noisy_answer(task: Task, rng: random.Random, noise: float) -> str:
    """An answer with mistakes and bad style, the more the higher the noise (0 to 1)."""
    happens = _chances(rng, noise)
    if happens(0.08):
        return rng.choice(REFUSALS)
    items = spoil(task, rng) if happens(0.35) else task.wanted
    answer = _phrase(task, items, rng.choice(task.forms))
    return _restyle(answer, rng, happens)


def twins(task: Task, rng: random.Random, noise: float) -> tuple[str, str]:
    """Two answers alike in all but their items: a right one and a wrong one."""
    form = rng.choice(task.forms)
    style_seed = rng.random()

    def answer(items: tuple[str, ...]) -> str:
        style = random.Random(style_seed)  # the same for both
        return _restyle(_phrase(task, items, form), style, _chances(style, noise))

    right = answer(task.wanted)
    wrong = answer(spoil(task, rng))
    return right, wrong


def spoil(task: Task, rng: random.Random) -> tuple[str, ...]:
    """The items with one mistake: another item or one too many; in a list also one missing or one
    twice."""
    items = list(task.wanted)
    i = rng.randrange(len(items))
    if len(items) > 1:
        mistakes = ["other", "other", "extra", "missing", "twice"]
    else:
        mistakes = ["other", "other", "other", "extra"]
    mistake = rng.choice(mistakes)
    if mistake == "other":
        items[i] = rng.choice([word for word in task.wrong if word != items[i]])
    elif mistake == "extra":
        items.insert(i + 1, rng.choice(task.wrong))
    elif mistake == "missing":
        del items[i]
    else:
        items.insert(i, items[i])
    return tuple(items)


def _chances(rng: random.Random, noise: float) -> Callable[[float], bool]:
    """happens(0.4): true in 40% of the cases at noise 1, in none at noise 0."""

    def happens(chance: float) -> bool:
        return rng.random() < chance * noise

    return happens


def _phrase(task: Task, items: tuple[str, ...], form: str) -> str:
    words = [item.title() if item in PROPER else item for item in items]
    text = form.format(task.join.join(words))
    return text[0].upper() + text[1:] + "."


def _restyle(answer: str, rng: random.Random, happens: Callable[[float], bool]) -> str:
    """Answers in bad style: no capital, no full stop, said twice, with words around them."""
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


# ---- the rule ----


def rule(task: Task, answer: str) -> float:
    """What an answer is worth, -7 to 5.5: the sum of three parts.

        correctness   -3 to 4      3 * (share of right items - share of wrong ones);
                                   1 more for an answer without a mistake
        brevity       -2.5 to 0    -0.3 for each word beyond the items and four words around them
        form          -1.5 to 1.5  0.75 each for a capital at the start and a mark at the end

    Facts count most: a right answer in the worst style (0) beats a wrong one in the best (-1.5).
    """
    words = re.findall(r"[a-z]+|[0-9]+", answer.lower())
    named = [word for word in words if word.isdigit() or word in ITEMS]
    number = len(task.wanted)

    right = _count_right(task, named)
    wrong = len(named) - right
    correctness = max(-3.0, 3.0 * (right - wrong) / number)
    if right == number and wrong == 0:
        correctness += 1

    brevity = max(-2.5, -0.3 * max(0, len(words) - number - 4))

    begins_well = answer[:1].isupper() or answer[:1].isdigit()
    ends_well = answer.rstrip()[-1:] in (".", "!", "?")
    form = (0.75 if begins_well else -0.75) + (0.75 if ends_well else -0.75)
    return correctness + brevity + form


def _count_right(task: Task, named: list[str]) -> int:
    """How many of the named items are right ones."""
    if task.allowed:
        different = set(named) & set(task.allowed)
        return min(len(different), len(task.wanted))
    # In order: the longest runs in common.
    matcher = difflib.SequenceMatcher(None, named, task.wanted, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())
