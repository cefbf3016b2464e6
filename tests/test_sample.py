import json
import sys
from types import SimpleNamespace

import pytest
from conftest import DATA, make_model, make_prompt, needs_data

import sample
from rmood.errors import UserError

STORY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{% if not loop.last %} {% endif %}{% endfor %}"
)


@pytest.fixture
def run_sample(monkeypatch, tmp_path, toy_model_folder):
    """run_sample(10, "--seed", 1): run sample.py on 10 prompts.

    Returns the rows of its target file, and the run file.
    """

    def run_sample(
        prompts, *flags, model=toy_model_folder, backend="transformers", target="sft.json"
    ):
        if isinstance(prompts, int):
            prompts = [make_prompt(i) for i in range(prompts)]
        prompts_path = tmp_path / "prompts.json"
        prompts_path.write_text(json.dumps([{"messages": messages} for messages in prompts]))
        target_path = tmp_path / target
        argv = ["sample.py", "--prompts-path", prompts_path, "--target-path", target_path]
        argv += ["--model-name", model, "--backend", backend, "--max-tokens", 12, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        sample.main()
        run_file = tmp_path / f"{target}.run.json"
        return json.loads(target_path.read_text()), json.loads(run_file.read_text())

    return run_sample


# ---- random streams ----


def test_no_two_responses_share_a_stream():
    config = sample.Config(num_responses=3)
    seeds = {sample.response_seed(config, row, k) for row in range(100) for k in range(3)}
    assert len(seeds) == 300


def test_two_runs_share_no_stream():
    """Seeds of runs lie more than twice 20,001 prompts apart, in the 32 bits a CPU looks at."""
    seeds = [sample.response_seed(sample.Config(seed=seed), 0) % 2**32 for seed in range(100)]
    distances = [abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]]
    assert min(distances) > 100_000


# ---- what is written ----


def test_same_seed_same_file_other_seed_other_texts(run_sample):
    first, run = run_sample(6)
    assert run_sample(6, target="again.json")[0] == first
    assert run_sample(6, "--seed", 1, target="other.json")[0] != first
    assert [list(row) for row in first] == [["response_1", "response_2"]] * 6
    assert all(row["response_1"] != row["response_2"] for row in first)
    assert run["finish_reasons"].keys() <= {"stop", "length"}
    assert sum(run["finish_reasons"].values()) == 12
    assert run["inputs"]["prompts"]["sha256"]
    assert len(run["template_sha256"]) == 64


def test_finish_reasons_count_responses_that_came_to_an_end_token(run_sample):
    rows, run = run_sample(40, "--max-tokens", 60, "--num-responses", 3)
    finish = [reasons.split() for reasons in run["finish"]]
    stopped = sum(row.count("stop") for row in finish)
    assert stopped == run["finish_reasons"]["stop"]
    assert stopped > 0
    assert run["truncated_share"] == run["finish_reasons"]["length"] / 120
    assert not any("<|im_end|>" in text for row in rows for text in row.values())


def test_prompts_are_sorted_for_the_batches_and_responses_are_not(run_sample):
    prompts = [
        [{"role": "user", "content": "count to " * (1 + 5 * i % 7) + str(i)}] for i in range(7)
    ]
    greedy = ["--temperature", 0, "--num-responses", 1, "--batch-size", 3]
    forwards, _ = run_sample(prompts, *greedy)
    backwards, _ = run_sample(prompts[::-1], *greedy, target="backwards.json")
    assert forwards == backwards[::-1]
    assert len({row["response_1"] for row in forwards}) > 1


def test_the_context_bounds_the_responses(run_sample):
    prompt = [{"role": "user", "content": "Q" * 470}]
    _, run = run_sample([prompt], "--max-tokens", 100, "--num-responses", 9)
    assert run["finish_reasons"]["length"] > 0  # cut at the context of 512, not an error


# ---- interruptions, shards and copies ----


def test_a_killed_run_goes_on_and_ends_with_the_same_file(
    run_sample, monkeypatch, tmp_path, capsys
):
    whole, _ = run_sample(10, "--batch-size", 3, target="whole.json")
    add = sample.Journal.add
    added = []

    def killed_in_the_third_chunk(journal, entries):
        if len(added) == 2:
            journal.file.write(b'[9, {"responses": ["cut sho')
            journal.file.close()
            raise KeyboardInterrupt
        added.append(entries)
        add(journal, entries)

    monkeypatch.setattr(sample.Journal, "add", killed_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        run_sample(10, "--batch-size", 3)
    assert not (tmp_path / "sft.json").exists()
    monkeypatch.setattr(sample.Journal, "add", add)
    assert run_sample(10, "--batch-size", 3)[0] == whole
    assert "resuming: 12 of 20 responses" in capsys.readouterr().err
    assert not list(tmp_path.glob("*journal*"))


def test_a_target_of_other_settings_or_prompts_is_kept_unless_overwrite_is_given(
    run_sample, tmp_path, capsys
):
    """sample.py --num-responses 16 once replaced the responses that gold had labelled."""
    first, _ = run_sample(4)
    before = (tmp_path / "sft.json").stat()
    assert run_sample(4)[0] == first
    assert "already exists, made with these settings and inputs" in capsys.readouterr().err
    others = [
        (4, ["--num-responses", 3], r"num responses \(2, now 3\)"),
        (4, ["--seed", 1], r"seed \(0, now 1\)"),
        (5, [], "prompts"),
    ]
    for prompts, flags, words in others:
        with pytest.raises(UserError, match=f"already there, .*with other {words}: .*--overwrite"):
            run_sample(prompts, *flags)
    after = (tmp_path / "sft.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    rows, run = run_sample(4, "--num-responses", 3, "--overwrite")
    assert len(rows[0]) == 3 and run["config"]["num_responses"] == 3
    (tmp_path / "sft.json").write_text(json.dumps([*rows[:3], rows[0]]))
    with pytest.raises(UserError, match="edited since it was written .of 4 rows 1 changed."):
        run_sample(4, "--num-responses", 3)


def test_unfinished_work_of_another_seed_is_not_mixed_in(run_sample, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_target", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run_sample(3)
    with pytest.raises(UserError, match="unfinished work with other settings"):
        run_sample(3, "--seed", 1)


def test_a_run_that_finished_nothing_does_not_bind_the_next(run_sample, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run_sample(3)
    assert len(run_sample(3, "--seed", 1)[0]) == 3


def test_shards_together_are_the_unsharded_run(run_sample, tmp_path, capsys):
    whole, run = run_sample(10, "--batch-size", 3, target="whole.json")
    for shard in ("3/4", "1/4", "4/4", "2/4", "2/4"):
        with pytest.raises(FileNotFoundError):  # run_sample reads the target of the whole
            run_sample(10, "--shard", shard)
    assert "shard-2-of-4: already exists" in capsys.readouterr().err
    merged, merged_run = run_sample(10, "--shard", "merge", "--num-responses", 5)
    assert merged == whole
    different = {name for name in run if run[name] != merged_run[name]}
    assert different <= {"time", "command", "config", "output"}
    # The settings are those of the shards, not of the command that merges.
    assert merged_run["config"]["num_responses"] == 2
    assert merged_run["config"]["shard"] == ""
    assert not list(tmp_path.glob("*journal*"))


def test_a_finished_file_is_not_sampled_again(run_sample, monkeypatch, capsys):
    first, _ = run_sample(4)
    monkeypatch.setattr(sample, "generate", None)  # would fail if it were called
    assert run_sample(4)[0] == first
    assert run_sample(4, "--overwrite")[0] == first
    assert capsys.readouterr().err.count("nothing to do") == 2


def test_two_copies_share_the_chunks_and_write_what_one_writes(run_sample, monkeypatch):
    alone, _ = run_sample(10, "--batch-size", 3, target="alone.json")
    add = sample.Journal.add
    shares = []

    class Copy:
        """Runs sample.py here, in place of a process of its own."""

        def __init__(self, command, env):
            def add_and_note(journal, entries):
                shares.append((env[sample.COPY], len(entries)))
                add(journal, entries)

            with monkeypatch.context() as patch:
                patch.setenv(sample.COPY, env[sample.COPY])
                patch.setattr(sample.Journal, "add", add_and_note)
                sample.main()

        def wait(self):
            return 0

        def terminate(self):
            pass

    monkeypatch.setattr(sample, "subprocess", SimpleNamespace(Popen=Copy))
    assert run_sample(10, "--batch-size", 3, "--data-parallel-size", 2)[0] == alone
    assert shares == [("0", 3), ("0", 3), ("1", 3), ("1", 1)]


# ---- errors ----


def test_error_messages(run_sample, monkeypatch):
    with pytest.raises(UserError, match="add --num-responses 1"):
        run_sample(2, "--temperature", 0)
    with pytest.raises(UserError, match="row 1 has 6.. tokens, the model's context is 512"):
        run_sample([make_prompt(0), [{"role": "user", "content": "Q" * 600}]])
    with pytest.raises(UserError, match="--tensor-parallel-size needs vLLM"):
        run_sample(2, "--tensor-parallel-size", 2)
    with pytest.raises(UserError, match="no/such/model: no model could be loaded"):
        run_sample(2, model="no/such/model")
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed"):
        run_sample(2, backend="vllm")


def test_a_tokenizer_of_another_model_is_refused(run_sample, tmp_path, toy_tokenizer):
    make_model("qwen3", vocab_size=64).save_pretrained(tmp_path / "small")
    toy_tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="lies outside the model's 64 embeddings"):
        run_sample(2, model=tmp_path / "small")


# ---- real weights ----


@needs_data
def test_real_weights_without_a_chat_template_need_one_from_a_file(run_sample, tmp_path):
    stories = DATA / "stories260k"
    prompts = [
        [{"role": "user", "content": f"Once upon a time, {name} had a ball."}]
        for name in ("Tom", "Lily", "Ben")
    ]
    with pytest.raises(UserError, match="give one with --chat-template FILE"):
        run_sample(prompts, model=stories)
    template = tmp_path / "story.jinja"
    template.write_text(STORY_TEMPLATE)
    rows, run = run_sample(prompts, "--chat-template", template, "--max-tokens", 40, model=stories)
    words = " ".join(text for row in rows for text in row.values()).split()
    common = set("the a and was to he she They they it One day had".split())
    known = sum(word.strip('.,!"') in common for word in words)
    assert known > 0.15 * len(words)
    assert run["inputs"]["chat_template"]["sha256"] == run["template_sha256"]


# ---- vLLM, by a stand-in: tests/test_vllm.py has the real one ----


def stand_in_for_vllm(monkeypatch, chat) -> None:
    """chat: what LLM.chat does, without itself."""

    class LLM:
        def __init__(self, **settings):
            pass

        def reset_prefix_cache(self):
            pass

        def chat(self, conversations, params, **settings):
            return chat(conversations)

    platform = SimpleNamespace(is_cpu=lambda: True)
    modules = {
        "vllm": dict(LLM=LLM, SamplingParams=SimpleNamespace, __spec__=True),
        "vllm.platforms": dict(current_platform=platform),
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": dict(EngineDeadError=RuntimeError),
    }
    for name, contents in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**contents))


def test_vllm_is_given_2048_prompts_at_a_time_and_each_chunk_is_kept(
    run_sample, monkeypatch, tmp_path
):
    """2,148 prompts are two chunks, the first in the journal before the second begins."""
    chunks = []
    kept = []

    def chat(conversations):
        chunks.append(len(conversations))
        journals = list(tmp_path.glob("sft.json.journal-*"))
        kept.append(sum(path.read_text().count("\n") - 1 for path in journals))
        answers = [SimpleNamespace(text=f"a{k}", finish_reason="stop") for k in range(2)]
        return [SimpleNamespace(outputs=answers) for _ in conversations]

    stand_in_for_vllm(monkeypatch, chat)
    rows, run = run_sample(2148, backend="vllm")
    assert chunks == [2048, 100] and kept == [0, 2048]
    assert len(rows) == 2148 and run["backend"] == "vllm"


def test_prompts_with_tools_are_sampled_by_transformers(run_sample, monkeypatch):
    with_tools = make_prompt(0)
    with_tools[0] |= {"tools": [{"type": "function", "function": {"name": "sum"}}]}
    rows, _ = run_sample([with_tools, make_prompt(1)])
    assert len(rows) == 2
    stand_in_for_vllm(monkeypatch, None)
    with pytest.raises(UserError, match="row 0 has tools, .*: use --backend transformers"):
        run_sample([with_tools, make_prompt(1)], "--overwrite", backend="vllm")
