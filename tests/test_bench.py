"""evaluate.py bench: published formulas and published numbers, nulls, paired comparisons."""

import gzip
import math
import sys
from itertools import product

import numpy as np
import pytest
import torch
from conftest import DATA, needs_data

import evaluate
import label
from rmood.diagnosis import bench as bench_module
from rmood.diagnosis.bench import (
    bench,
    best_of_credit,
    holm,
    sign_flip_test,
    style_credits,
    table,
    ties_credits,
)
from rmood.diagnosis.benchmarks import (
    Benchmark,
    Item,
    read_benchmark,
    read_benchmark_rewards,
)
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.rows import read_json, write_json, write_jsonl
from rmood.loading import load_reward_model

JUDGEBENCH = DATA / "judgebench"
# Table 3 of the paper (Tan et al., ICLR 2025): knowledge, reasoning, math, coding, overall
PUBLISHED = {
    "Skywork_Skywork-Reward-Gemma-2-27B": (59.74, 66.33, 83.93, 50.00, 64.29),
    "Skywork_Skywork-Reward-Llama-3.1-8B": (59.09, 64.29, 76.79, 50.00, 62.29),
    "internlm_internlm2-20b-reward": (62.34, 69.39, 66.07, 50.00, 63.43),
    "internlm_internlm2-7b-reward": (56.49, 61.22, 71.43, 50.00, 59.43),
    "Ray2333_GRM-Gemma-2B-rewardmodel-ft": (62.99, 53.06, 64.29, 54.76, 59.43),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return tmp_path


def scores_of(numbers: dict) -> dict[str, float]:
    return {line["name"]: line["score"] for line in numbers["scores"]}


def item(subset: str, right: int, wrong: int, prompt: str = "say cat", key: str = "") -> Item:
    conversations = []
    for number in range(right + wrong):
        answer = {"role": "assistant", "content": "a" * (number + 1)}
        conversations.append([{"role": "user", "content": prompt}, answer])
    return Item(conversations, (True,) * right + (False,) * wrong, subset, key)


def of(name: str, *items: Item) -> Benchmark:
    return Benchmark(name, list(items), ["made here"])


def rewards(*rows) -> list[np.ndarray]:
    return [np.array(row, dtype=float) for row in rows]


# ---- JudgeBench --------------------------------------------------------------------------------


# The published file lists its sources one after the other.
SOURCES = ["mmlu-pro"] * 154 + ["livebench-math"] * 56
SOURCES += ["livebench-reasoning"] * 98 + ["livecodebench"] * 42


@pytest.fixture(scope="module")
def judgebench_path(tmp_path_factory) -> str:
    """The 350 pairs that have rewards, in the benchmark's own form and order."""
    folder = JUDGEBENCH / "rewards"
    parts = [read_json(str(folder / f"{name}.json")) for name in ("prompts", "responses", "truth")]
    rows = []
    for prompt, response, truth, source in zip(*parts, SOURCES, strict=True):
        row = {"question": prompt["messages"][0]["content"], "source": source}
        row["response_A"], row["response_B"] = response["response_1"], response["response_2"]
        row["label"] = "A>B" if truth[0] > truth[1] else "B>A"
        rows.append(row)
    path = str(tmp_path_factory.mktemp("judgebench") / "gpt-4o.jsonl")
    write_jsonl(path, rows)
    return path


@needs_data
@pytest.mark.parametrize("model", PUBLISHED)
def test_judgebench_gives_the_published_table(model, judgebench_path):
    read = read_benchmark(judgebench_path)
    finished = read_benchmark_rewards(str(JUDGEBENCH / "rewards" / f"{model}.json"), read)
    scores = scores_of(bench(read, finished))
    names = ("knowledge", "reasoning", "math", "coding", "overall")
    assert tuple(round(100 * scores[name], 2) for name in names) == PUBLISHED[model]


@needs_data
def test_the_best_of_the_published_models_do_not_differ_surely(judgebench_path):
    """Skywork-27B and internlm2-20b: 44 against 41 discordant pairs; binomial p = 0.828."""
    read = read_benchmark(judgebench_path)
    folder = JUDGEBENCH / "rewards"
    both = []
    for model in ("Skywork_Skywork-Reward-Gemma-2-27B", "internlm_internlm2-20b-reward"):
        both.append(read_benchmark_rewards(str(folder / f"{model}.json"), read))
    overall = bench(read, *both)["scores"][-1]
    assert overall["p"] == pytest.approx(0.828, abs=0.001)
    assert overall["difference"] == pytest.approx(3 / 350)
    assert overall["difference_low"] < 0 < overall["difference_high"]


def test_a_tie_is_a_miss_wherever_the_right_answer_stands():
    """JudgeBench asks in both orders: an answer for A, then for B, is a tie, and not correct."""
    a_right, b_right = item("math", 1, 1), item("math", 1, 1)
    object.__setattr__(b_right, "right", (False, True))
    read = of("judgebench", a_right, b_right)
    assert scores_of(bench(read, rewards([1, 1], [1, 1])))["overall"] == 0
    assert scores_of(bench(read, rewards([2, 1], [1, 1])))["overall"] == 0.5


def test_pairs_of_two_response_models_are_two_tables():
    """The published one has GPT-4o's pairs alone; a folder holds Claude's, too."""
    items = [item("math", 1, 1, key="gpt-4o"), item("math", 1, 1, "say dog", key="claude")]
    scores = scores_of(bench(of("judgebench", *items), rewards([1, 0], [0, 1])))
    assert scores == {"gpt-4o math": 1, "claude math": 0, "overall": 0.5}


# ---- RM-Bench ----------------------------------------------------------------------------------


def test_styles_above_the_diagonal_are_hard():
    """wins[i, j]: chosen i beats rejected j. The markdown one (last) of both sides gets 9.

    1 > 0, 5, 9     T F F     hard: (1,2) (1,3) (2,3): 0 of 3
    5 > 0, 5, 9     T F F     normal: T, F (a tie), F (a tie): 1 of 3
    9 > 0, 5, 9     T T F     easy: (2,1) (3,1) (3,2): 3 of 3
    """
    hard, normal, easy = style_credits(np.array([1, 5, 9.0]), np.array([0, 5, 9.0]))
    assert (hard, normal, easy) == (0, pytest.approx(1 / 3), 1)


def test_domains_count_the_same_whatever_their_size():
    """Chat: all right. Code, three prompts: nothing right. Overall 1/2, not 1/4."""
    items = [item("chat", 3, 3)] + [item("code", 3, 3, f"say {i}") for i in range(3)]
    right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    numbers = bench(of("rm-bench", *items), rewards(right, wrong, wrong, wrong))
    scores = scores_of(numbers)
    assert scores["chat"] == scores["chat hard"] == 1
    assert scores["hard"] == scores["normal"] == scores["easy"] == scores["overall"] == 0.5
    assert numbers["missing"] == ["math", "safety"]


@needs_data
def test_rm_bench_on_its_own_files_and_its_nulls():
    """Longer responses win the easy comparisons and lose the hard ones: by design of its styles."""
    read = read_benchmark(str(DATA / "rm-bench"))
    assert (read.name, len(read.items)) == ("rm-bench", 129 + 284)
    rng = np.random.default_rng(0)
    made = [np.round(rng.normal(size=6), 1) for _ in read.items]
    lines = {line["name"]: line for line in bench(read, made)["scores"]}
    chat = np.array(made[:129])
    wins = chat[:, :3, None] > chat[:, None, 3:]  # (129, 3, 3)
    hard = wins[:, [0, 0, 1], [1, 2, 2]].mean()
    easy = wins[:, [1, 2, 2], [0, 0, 1]].mean()
    normal = wins[:, [0, 1, 2], [0, 1, 2]].mean()
    assert lines["chat hard"]["score"] == pytest.approx(hard)
    assert lines["chat"]["score"] == pytest.approx((hard + normal + easy) / 3)
    for domain in ("chat", "safety"):
        assert lines[f"{domain} hard"]["longer"] < 0.2 < 0.8 < lines[f"{domain} easy"]["longer"]
    for line in lines.values():
        assert line["score_low"] <= line["score"] <= line["score_high"]


# ---- RewardBench, RewardBench 2, RMB -------------------------------------------------------------


def test_rewardbench_weighs_math_as_much_as_code_and_the_prior_sets_by_half():
    """Reasoning: (984 * 1 + 164 * 0) / 1148; Chat: 0; prior sets: 1 of 4. Weights 1, 1 and 1/2."""
    prior = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
    subsets = ["math-prm", "hep-cpp", "mt-bench-easy", *prior]
    items = [item(subset, 1, 1, f"say {subset}") for subset in subsets]
    won = [1, 0, 0, 1, 0, 0, 0]
    read = of("rewardbench", *items)
    scores = scores_of(bench(read, rewards(*[[win, 0.5] for win in won])))
    assert scores["Reasoning"] == pytest.approx(984 / 1148)
    assert scores["Prior Sets"] == 0.25
    assert scores["overall"] == pytest.approx((0 + 984 / 1148 + 0.5 * 0.25) / 2.5)
    core = bench(of("rewardbench", *items[:3]), rewards([1, 0.5], [0, 0.5], [0, 0.5]))
    assert scores_of(core)["overall"] == pytest.approx((984 / 1148) / 2)
    assert any("prior sets" in what for what in core["missing"])


def test_best_of_four_shares_the_credit_among_equal_highest_rewards():
    assert best_of_credit(np.array([2.0]), np.array([1, 0, 0.0])) == 1
    assert best_of_credit(np.array([2.0]), np.array([2, 0, 2.0])) == pytest.approx(1 / 3)
    assert best_of_credit(np.array([1.0]), np.array([2, 1, 1.0])) == 0


def test_ties_want_right_answers_close_and_above_the_wrong_ones():
    """gap and width of each tied row, gap of its ref row, by hand:

    0: gap 3, width 1, ref 4: all four terms, and tanh(3 / 1 - 1)
    1: gap -1, width 2, ref -1: none of them, tanh(-1 / 2 - 1)
    2: gap 2, width 0, ref 1: all four, tanh(infinity) = 1
    3: gap 0, width 0, ref 3: 0.3 of ref alone; 0 / 0 counts as 0
    4: gap 2, width 3, ref 9: both gaps above 0, neither above the width
    5: gap 3, width 1, ref 0.5: all but the last, as the lesser gap is under the width
    """
    rows = [
        ("tied:0", [5, 4], [1]),
        ("ref:0", [5], [1, 0]),
        ("ref:1", [0], [1]),
        ("tied:1", [3, 1], [2]),
        ("tied:2", [2, 2], [0]),
        ("ref:2", [1], [0]),
        ("tied:3", [2, 2], [2]),
        ("ref:3", [3], [0]),
        ("tied:4", [6, 3], [1]),
        ("ref:4", [9], [0]),
        ("tied:5", [5, 4], [1]),
        ("ref:5", [0.5], [0]),
    ]
    credits = ties_credits([(key, np.array(a, float), np.array(b, float)) for key, a, b in rows])
    assert credits == pytest.approx(
        {
            "0": 1 + 0.01 * math.tanh(2),
            "1": 0.01 * math.tanh(-1.5),
            "2": 1.01,
            "3": 0.3,
            "4": 0.6 + 0.01 * math.tanh(2 / 3 - 1),
            "5": 0.8 + 0.01 * math.tanh(0.5 - 1),
        }
    )
    items = [item("Ties", len(a), len(b), key, key) for key, a, b in rows]
    read = of("rewardbench-2", *items, item("Math", 1, 3))
    scores = scores_of(bench(read, rewards(*[a + b for _, a, b in rows], [1, 0, 0, 0])))
    assert scores["Ties"] == pytest.approx(np.mean(list(credits.values())))
    assert scores["overall"] == pytest.approx((scores["Ties"] + 1) / 2)
    with pytest.raises(UserError, match="'tied:0' has no 'ref:0'"):
        bench(of("rewardbench-2", items[0]), rewards([5, 4, 1]))


def test_rmb_s_best_must_beat_every_loser_and_its_four_sections_count_the_same():
    items = [
        item("Helpfulness BoN/Chat", 1, 3),
        item("Helpfulness pairwise/Chat", 1, 1),
        item("Helpfulness pairwise/Chat", 1, 1, "say dog"),
        item("Helpfulness pairwise/Code", 1, 1),
        item("Harmlessness BoN/S1", 1, 2),
        item("Harmlessness pairwise/S1", 1, 1),
    ]
    made = rewards([3, 1, 2, 3], [1, 0], [1, 0], [0, 1], [3, 1, 2], [1, 0])
    scores = scores_of(bench(of("rmb", *items), made))
    assert scores["Helpfulness BoN"] == 0  # the last loser ties with the best
    assert scores["Helpfulness pairwise"] == pytest.approx(2 / 3)  # of its pairs, not of its parts
    assert scores["overall"] == pytest.approx((0 + 2 / 3 + 1 + 1) / 4)


ANSWER = {"llm_name": "a model", "answer": "cat"}
AS_PUBLISHED = {
    "judgebench": {
        "question": "say cat",
        "response_A": "dog",
        "response_B": "cat",
        "label": "B>A",
        "source": "mmlu-pro-law",
    },
    "rm-bench": {
        "prompt": "say cat",
        "chosen": ["cat"] * 3,
        "rejected": ["dog"] * 3,
        "domain": "safety-refuse",
    },
    "rmb": {
        "conversation_input": [{"content": "say cat", "language": "English", "role": "user"}],
        "bon_best": ANSWER,
        "loser_list": [ANSWER, ANSWER],
        "category_path": "BoN_set/Helpfulness/Chat/Discussion",
    },
    "rewardbench": {"prompt": "say cat", "chosen": "cat", "rejected": "dog", "subset": "hep-go"},
    "rewardbench-2": {
        "id": "7",
        "prompt": "say cat",
        "chosen": ["cat"],
        "rejected": ["dog", "cow", "pig"],
        "num_correct": 1,
        "subset": "Focus",
    },
    "pairs": {
        "chosen": [{"role": "user", "content": "say cat"}, {"role": "assistant", "content": "cat"}],
        "rejected": [
            {"role": "user", "content": "say cat"},
            {"role": "assistant", "content": "dog"},
        ],
        "subset": "animals",
    },
}
READ = {  # subset, which responses are right
    "judgebench": ("knowledge", (False, True)),
    "rm-bench": ("safety", (True,) * 3 + (False,) * 3),
    "rmb": ("Helpfulness BoN/Chat", (True, False, False)),
    "rewardbench": ("hep-go", (True, False)),
    "rewardbench-2": ("Focus", (True, False, False, False)),
    "pairs": ("animals", (True, False)),
}


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_each_published_form_is_recognised_in_each_kind_of_file(name, tmp_path):
    rows = [AS_PUBLISHED[name]] * 2
    paths = [str(tmp_path / file) for file in ("a.json", "b.jsonl", "c.jsonl.gz")]
    write_json(paths[0], rows)
    write_jsonl(paths[1], rows)
    with open(paths[1], "rb") as plain, gzip.open(paths[2], "wb") as zipped:
        zipped.write(plain.read())
    read = [read_benchmark(path) for path in paths]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "d.parquet"))
    read.append(read_benchmark(str(tmp_path / "d.parquet")))
    for one in read:
        assert one.name == name
        assert [(i.subset, i.right) for i in one.items] == [READ[name]] * 2
        assert one.items[0].conversations[0][0] == {"role": "user", "content": "say cat"}
    assert read_benchmark(paths[0], name).items == read[0].items


def test_prior_sets_are_named_by_their_files(tmp_path):
    row = {"prompt": [{"role": "user", "content": "say cat"}], "chosen": "cat", "rejected": "dog"}
    write_jsonl(str(tmp_path / "anthropic_hhh-00000-of-00001-5e2f.jsonl"), [row, row])
    read = read_benchmark(str(tmp_path))
    assert (read.name, read.items[0].subset) == ("rewardbench", "anthropic_hhh")


def test_files_that_repeat_others_or_hold_no_benchmark_are_left_out_and_named(tmp_path):
    folder = tmp_path / "data"
    row = AS_PUBLISHED["rewardbench"]
    write_jsonl(str(folder / "filtered-00000-of-00001.jsonl"), [row, row])
    write_jsonl(str(folder / "raw-00000-of-00001.jsonl"), [row] * 9)
    write_json(str(folder / "nested" / "settings.json"), [{"a": 1}, {"a": 2}])
    read = read_benchmark(str(folder))
    assert len(read.items) == 2
    assert "filtered rows" in read.describe() and "settings.json" in read.describe()


# ---- nulls, intervals, comparisons ---------------------------------------------------------------


def test_the_nulls_are_the_same_formula_on_lengths():
    """item(): response k has k + 1 letters, so right ones are shorter."""
    read = of("rm-bench", item("chat", 3, 3))
    [hard, *_] = bench(read, rewards([1, 1, 1, 0, 0, 0]))["scores"]
    assert (hard["longer"], hard["shorter"]) == (0, 1)
    assert hard["over_null"] == 0


def test_rows_of_one_prompt_are_one_draw():
    """Ten copies of each pair say no more than one."""
    items = [item("all", 1, 1, f"say {i}") for i in range(40)]
    rows = [[i % 3, 0.5] for i in range(40)]
    alone = bench(of("pairs", *items), rewards(*rows))["scores"]
    copied = bench(of("pairs", *items * 10), rewards(*rows * 10))["scores"]
    for one, ten in zip(alone, copied):
        assert ten["score"] == pytest.approx(one["score"])
        assert ten["score_low"] == pytest.approx(one["score_low"], abs=2e-3)


def test_mcnemar_is_the_binomial_of_the_discordant_pairs():
    """9 wins, 2 losses: 2 (C(11,9) + C(11,10) + C(11,11)) / 2^11 = 2 * 67 / 2048"""
    assert sign_flip_test(np.array([1.0] * 9 + [-1.0] * 2 + [0] * 50)) == pytest.approx(134 / 2048)
    assert sign_flip_test(np.zeros(5)) == 1


def test_random_signs_estimate_what_all_signs_give():
    d = np.array([3, 1, -1, 2, 2, 1, -2, 3, 1.0])
    totals = [abs(np.dot(signs, d)) for signs in product([-1, 1], repeat=len(d))]
    exact = np.mean([total >= abs(d.sum()) - 1e-9 for total in totals])
    assert sign_flip_test(d) == pytest.approx(exact, abs=0.015)


def test_false_alarms_of_two_equal_models_stay_below_5_percent():
    """60 prompts of two pairs each, two models of one quality: at most 1 in 20 has p < 0.05."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        ours, theirs = rng.integers(0, 3, size=(2, 60)) / 2  # two pairs a prompt
        alarms += sign_flip_test(ours - theirs, draws=500) < 0.05
    assert alarms <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]


def test_subsets_are_corrected_for_their_number_and_overall_is_not():
    items = [item(subset, 1, 1, f"{subset} {i}") for subset in "ab" for i in range(10)]
    win, lose = [[1, 0]] * 20, [[0, 1]] * 8 + [[1, 0]] * 12
    lines = {
        line["name"]: line
        for line in bench(of("pairs", *items), rewards(*win), rewards(*lose))["scores"]
    }
    assert lines["a"]["p"] == pytest.approx(2 / 2**8)
    assert lines["a"]["p_holm"] == pytest.approx(4 / 2**8)
    assert lines["overall"]["p_holm"] == lines["overall"]["p"]
    shown = table(bench(of("pairs", *items), rewards(*win), rewards(*lose)), "ours", "theirs")
    assert "theirs" in shown and "+80.00" in shown


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(toy_model_folder, toy_tokenizer, tmp_path_factory) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path_factory.mktemp("models") / "rm")
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    return folder


@pytest.fixture
def bench_path(home) -> str:
    """Six rows of RMB with 3, 4 or 5 responses."""
    rows = []
    for i in range(6):
        losers = [{"llm_name": "b", "answer": f"dog {'one ' * k}{i}"} for k in range(2 + i % 3)]
        row = AS_PUBLISHED["rmb"] | {"loser_list": losers}
        row["conversation_input"] = [{"role": "user", "content": f"say cat {i}"}]
        rows.append(row)
    path = str(home / "rmb.json")
    write_json(path, rows)
    return path


def run_bench(*flags: str) -> int:
    return evaluate.main(["bench", *map(str, flags)])


def test_a_model_its_finished_rewards_and_label_s_rewards_score_the_same(
    home, bench_path, model, monkeypatch, capsys
):
    scoring = ["--dtype", "float32", "--device", "cpu"]
    given = ["--bench-path", bench_path]
    target = home / "rewards.json"
    run_bench(
        *given, "--model-name", model, "--target-path", target, "--json", home / "a", *scoring
    )
    run_bench(*given, "--rewards-path", target, "--against", target, "--json", home / "b")
    run_bench(*given, "--write-texts", home / "texts")
    texts = home / "texts"
    argv = ["label.py", "--prompts-path", f"{texts}/prompts.json", "--model-name", model]
    argv += [
        "--responses-path",
        f"{texts}/responses.json",
        "--target-path",
        f"{texts}/rewards.json",
    ]
    monkeypatch.setattr(sys, "argv", argv + scoring)
    assert label.main() == 0
    run_bench(*given, "--rewards-path", f"{texts}/rewards.json", "--json", home / "c")

    numbers = [read_json(str(home / name)) for name in "abc"]
    assert scores_of(numbers[0]) == scores_of(numbers[1]) == scores_of(numbers[2])
    assert [line["n"] for line in numbers[0]["scores"]] == [6, 6, 6]
    assert numbers[1]["scores"][0]["difference"] == 0
    out = capsys.readouterr().out
    assert "read as rmb: 6 rows of 1 file, 6 prompts, 24 responses" in out
    assert "no rows of: Helpfulness pairwise" in out
    with pytest.raises(UserError, match="is there already"):
        run_bench(*given, "--model-name", model, "--target-path", target)


def test_results_of_the_benchmark_s_own_code_are_read_as_rewards(home):
    row = AS_PUBLISHED["judgebench"]
    judged = [{"judgment": {"scores": [0.5, 1.5]}, "decision": "B>A"}]
    write_jsonl(str(home / "outputs.jsonl"), [row | {"judgments": judged}] * 2)
    read = read_benchmark(str(home / "outputs.jsonl"))
    assert [list(r) for r in read_benchmark_rewards(str(home / "outputs.jsonl"), read)] == [
        [0.5, 1.5]
    ] * 2
    scores = {"score_chosen": [3, 2, 1.0], "score_rejected": [0, 1, 2.0]}
    write_jsonl(str(home / "results.jsonl"), [AS_PUBLISHED["rm-bench"] | scores] * 2)
    read = read_benchmark(str(home / "results.jsonl"))
    found = read_benchmark_rewards(str(home / "results.jsonl"), read)
    assert list(found[1]) == [3, 2, 1, 0, 1, 2]


def without(name: str, key: str) -> dict:
    return {k: value for k, value in AS_PUBLISHED[name].items() if k != key}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"a": 1}], "not a row of a known benchmark"),
        ([AS_PUBLISHED["judgebench"] | {"label": "A"}], "neither 'A>B' nor 'B>A'"),
        ([AS_PUBLISHED["judgebench"] | {"source": "trivia"}], "begins with none of"),
        ([AS_PUBLISHED["rm-bench"] | {"chosen": ["a", "b"]}], "2 chosen and 3 rejected"),
        ([without("rm-bench", "domain")], "begins with no domain"),
        ([without("rmb", "bon_best")], "not a whole row of rmb"),
        ([AS_PUBLISHED["rmb"] | {"loser_list": []}], "needs a right and a wrong response"),
        ([AS_PUBLISHED["rewardbench-2"] | {"num_correct": 2}], "num_correct is 2"),
        ([AS_PUBLISHED["rmb"], AS_PUBLISHED["judgebench"]], "line 2: not a row of rmb"),
    ],
)
def test_a_bad_benchmark_is_told_in_one_line(rows, message, home):
    write_jsonl(str(home / "bad.jsonl"), [rows[0], *rows])
    with pytest.raises(UserError) as error:
        run_bench("--bench-path", home / "bad.jsonl", "--rewards-path", "none.json")
    assert message in str(error.value).replace("line 3", "line 2")
    assert "\n" not in str(error.value) and "bad.jsonl" in str(error.value)


@pytest.mark.parametrize(
    "made, message",
    [
        ([[1, 2]] * 5, "5 rows, but the benchmark has 6 and 24 responses"),
        ([[1, 2]] * 6, "row 0 has 2 rewards for 3 responses"),
        ([["1", 2, 3]] * 6, "not a finite number"),
        ([{"text": 1}] * 6, "holds no rewards"),
    ],
)
def test_rewards_of_other_responses_are_told_in_one_line(made, message, home, bench_path):
    write_json(str(home / "made.json"), made)
    with pytest.raises(UserError) as error:
        run_bench("--bench-path", bench_path, "--rewards-path", home / "made.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_name_or_no_path_is_told_in_one_line(home, bench_path):
    with pytest.raises(UserError, match="holds rmb, not rm-bench"):
        run_bench("--bench-path", bench_path, "--bench", "rm-bench")
    with pytest.raises(UserError, match="pass --bench-path"):
        run_bench()
    (home / "empty").mkdir()
    with pytest.raises(UserError, match="no JSON"):
        run_bench("--bench-path", home / "empty")


def test_every_section_of_the_table_is_known_to_the_formula():
    """The 23 subsets of RewardBench have 2,985 pairs; math's 447 count as 984: 3,522."""
    counts = [sum(section.values()) for section in bench_module.REWARDBENCH_SECTIONS.values()]
    assert counts == [358, 456, 740, 1968]
    assert sum(counts) - 984 + 447 == 2985
