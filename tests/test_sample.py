import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import DATA, make_model, make_prompt, needs_data

import sample
from rmood import BadInput
from rmood.generation import draw, generate

STORY_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% if not loop.last %} {% endif %}{% endfor %}"


@pytest.fixture
def ask(monkeypatch, tmp_path, toy_model_folder):
    """ask(10, "--seed", 1): run sample.py on 10 prompts; returns the rows of rm_sft.json and of its run file."""

    def ask(prompts, *flags, model=toy_model_folder, backend="transformers", target="sft.json"):
        messages = [make_prompt(i) for i in range(prompts)] if isinstance(prompts, int) else prompts
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps([{"messages": row} for row in messages]))
        paths = ["--prompts-path", path, "--target-path", tmp_path / target, "--model-name", model, "--backend", backend]
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, [*paths, "--max-tokens", 12, *flags])])
        sample.main()
        return json.loads((tmp_path / target).read_text()), json.loads((tmp_path / f"{target}.run.json").read_text())

    return ask


# ---- drawing a token -------------------------------------------------------------------------------------------


def test_a_token_is_drawn_where_the_number_falls_in_the_running_sum():
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log()  # running sum .5 .7 1
    assert [draw(logits, torch.tensor([u], dtype=torch.float64)).item() for u in (0.0, 0.4, 0.6, 0.8, 1 - 1e-16)] == [0, 0, 1, 2, 2]
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert draw(logits.expand(1000, 3), grid).bincount().tolist() == [500, 200, 300]


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    logits, u = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0.2], dtype=torch.float64)
    assert draw(logits, u).item() == 0  # probabilities 1/4, 3/4
    assert draw(logits, u, temperature=0.5).item() == 1  # 1/10, 9/10
    assert draw(logits, u, temperature=0).item() == 1


def test_top_p_keeps_the_likeliest_tokens_that_reach_it():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    grid = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    assert draw(logits.expand(800, 3), grid, top_p=0.6).bincount(minlength=3).tolist() == [0, 500, 300]  # .5 is short of .6, .5 + .3 is not
    assert draw(logits.expand(800, 3), grid, top_p=0.4).bincount(minlength=3).tolist() == [0, 800, 0]


def test_no_two_responses_share_a_stream():
    config = sample.Config(num_responses=3)
    assert len({sample.stream(config, row, k) for row in range(100) for k in range(3)}) == 300
    low_bits = [sample.stream(sample.Config(seed=seed), 0) % 2**32 for seed in range(100)]  # a CPU's generator looks at no more than 32
    assert min(abs(a - b) for i, a in enumerate(low_bits) for b in low_bits[:i]) > 100_000  # more than twice 20,001 prompts


# ---- generation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_greedy_text_is_that_of_transformers_generate_prompt_by_prompt(kind):
    model = make_model(kind).eval()
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13], [14, 15, 16, 17]]
    together = generate(model, prompts, [12] * 4, torch.zeros(4, 12, dtype=torch.float64), ends=[2], temperature=0)
    for prompt, row in zip(prompts, together):
        alone = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0)[0, len(prompt) :]
        assert row == alone.tolist()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_response_does_not_depend_on_who_shares_its_batch(kind):
    model, luck = make_model(kind).eval(), torch.rand(8, 20, generator=torch.manual_seed(0), dtype=torch.float64)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13], [14, 15, 16, 17]]
    ends = list(range(2, 60))  # so many end tokens that responses end at different steps and leave the batch
    together = generate(model, prompts, [20] * 4, luck, ends)
    alone = [row for i, prompt in enumerate(prompts) for row in generate(model, [prompt], [20], luck[2 * i : 2 * i + 2], ends)]
    assert together == alone
    assert len(set(map(len, together))) > 2 and all(row[-1] in ends or len(row) == 20 for row in together)
    assert not any(token in ends for row in together for token in row[:-1])


def test_room_is_kept_prompt_by_prompt():
    rows = generate(make_model("qwen3").eval(), [[5, 6], [7]], [3, 9], torch.full((4, 9), 0.5, dtype=torch.float64), ends=[])
    assert [len(row) for row in rows] == [3, 3, 9, 9]


# ---- the script ------------------------------------------------------------------------------------------------


def test_same_seed_same_file_other_seed_other_texts(ask):
    first, run = ask(6)
    assert ask(6, target="again.json")[0] == first
    assert ask(6, "--seed", 1, target="other.json")[0] != first
    assert [list(row) for row in first] == [["response_1", "response_2"]] * 6
    assert all(row["response_1"] != row["response_2"] for row in first)
    assert run["finish_reasons"].keys() <= {"stop", "length"} and sum(run["finish_reasons"].values()) == 12
    assert run["inputs"]["prompts"]["sha256"] and len(run["template_sha256"]) == 64


def test_finish_reasons_count_who_came_to_an_end_token(ask, toy_tokenizer):
    rows, run = ask(40, "--max-tokens", 60, "--num-responses", 3)
    finish = [ends.split() for ends in run["finish"]]
    assert sum(row.count("stop") for row in finish) == run["finish_reasons"]["stop"] > 0
    assert run["truncated_share"] == run["finish_reasons"]["length"] / 120
    assert not any("<|im_end|>" in text for row in rows for text in row.values())


def test_prompts_are_sorted_for_the_batches_and_answers_are_not(ask):
    prompts = [[{"role": "user", "content": "count to " * (1 + 5 * i % 7) + str(i)}] for i in range(7)]
    greedy = ["--temperature", 0, "--num-responses", 1, "--batch-size", 3]
    forwards, _ = ask(prompts, *greedy)
    backwards, _ = ask(prompts[::-1], *greedy, target="backwards.json")
    assert forwards == backwards[::-1]
    assert len({row["response_1"] for row in forwards}) > 1


def test_a_killed_run_goes_on_and_ends_with_the_same_file(ask, monkeypatch, tmp_path, capsys):
    whole, _ = ask(10, "--batch-size", 3, target="whole.json")
    add, added = sample.Journal.add, []

    def killed(journal, entries):
        if len(added) == 2:
            journal.file.write(b'[9, {"responses": ["cut sho')
            journal.file.close()
            raise KeyboardInterrupt
        added.append(entries)
        add(journal, entries)

    monkeypatch.setattr(sample.Journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(10, "--batch-size", 3)
    assert not (tmp_path / "sft.json").exists()
    monkeypatch.setattr(sample.Journal, "add", add)
    assert ask(10, "--batch-size", 3)[0] == whole
    assert "going on: 12 of 20 responses" in capsys.readouterr().err
    assert not list(tmp_path.glob("*journal*"))


def test_unfinished_work_of_another_seed_is_not_mixed_in(ask, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_target", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            ask(3)
    with pytest.raises(BadInput, match="unfinished work with other settings"):
        ask(3, "--seed", 1)


def test_a_run_that_finished_nothing_does_not_bind_the_next(ask, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            ask(3)
    assert len(ask(3, "--seed", 1)[0]) == 3


def test_shards_together_are_the_unsharded_run(ask, tmp_path, capsys):
    whole, run = ask(10, "--batch-size", 3, target="whole.json")
    for shard in ("3/4", "1/4", "4/4", "2/4", "2/4"):
        with pytest.raises(FileNotFoundError):  # ask() looks for the whole
            ask(10, "--shard", shard)
    assert "shard-2-of-4: stands already" in capsys.readouterr().err
    merged, of_merged = ask(10, "--shard", "merge", "--num-responses", 5)
    assert merged == whole
    assert {name for name in run if run[name] != of_merged[name]} <= {"time", "command", "config", "output"}
    assert of_merged["config"]["num_responses"] == 2 and of_merged["config"]["shard"] == ""  # the shards', not the merging command's
    assert not list(tmp_path.glob("*journal*"))


def test_a_file_that_stands_is_not_sampled_again_unless_it_was_made_otherwise(ask, monkeypatch, tmp_path, capsys):
    first, _ = ask(4)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate", None)  # would fail if it were called
        assert ask(4)[0] == first
    assert "nothing to do" in capsys.readouterr().err
    (tmp_path / "sft.json").write_text("[]")
    assert ask(4)[0] == first
    assert ask(4, "--seed", 1)[0] != first


def test_two_copies_share_the_chunks_and_write_what_one_writes(ask, monkeypatch):
    alone, _ = ask(10, "--batch-size", 3, target="alone.json")
    shares = []

    class Copy:  # in place of a process of its own
        def __init__(self, command, env):
            with monkeypatch.context() as patch:
                patch.setenv(sample.COPY, env[sample.COPY])
                add = sample.Journal.add
                patch.setattr(sample.Journal, "add", lambda journal, entries: (shares.append((env[sample.COPY], len(entries))), add(journal, entries)))
                sample.main()

        def wait(self):
            return 0

        terminate = wait

    monkeypatch.setattr(sample, "subprocess", SimpleNamespace(Popen=Copy))
    assert ask(10, "--batch-size", 3, "--data-parallel-size", 2)[0] == alone
    assert shares == [("0", 3), ("0", 3), ("1", 3), ("1", 1)]


def test_letters(ask, monkeypatch):
    with pytest.raises(BadInput, match="add --num-responses 1"):
        ask(2, "--temperature", 0)
    with pytest.raises(BadInput, match="row 1 has 6.. tokens, the model's context is 512"):
        ask([make_prompt(0), [{"role": "user", "content": "Q" * 600}]])
    with pytest.raises(BadInput, match="--tensor-parallel-size needs vLLM"):
        ask(2, "--tensor-parallel-size", 2)
    with pytest.raises(BadInput, match="no/such/model: no model could be loaded"):
        ask(2, model="no/such/model")
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="vLLM is not installed"):
        ask(2, backend="vllm")


def test_the_context_bounds_the_responses(ask):
    _, run = ask([[{"role": "user", "content": "Q" * 470}]], "--max-tokens", 100, "--num-responses", 9)
    assert run["finish_reasons"]["length"] > 0  # cut at the context of 512, not an error


@needs_data
def test_real_weights_without_a_chat_template_need_one_from_a_file(ask, tmp_path):
    stories = DATA / "stories260k"
    prompts = [[{"role": "user", "content": f"Once upon a time, {name} had a ball."}] for name in ("Tom", "Lily", "Ben")]
    with pytest.raises(BadInput, match="give one with --chat-template FILE"):
        ask(prompts, model=stories)
    (tmp_path / "story.jinja").write_text(STORY_TEMPLATE)
    rows, run = ask(prompts, "--chat-template", tmp_path / "story.jinja", "--max-tokens", 40, model=stories)
    words = " ".join(text for row in rows for text in row.values()).split()
    assert sum(word.strip(".,!\"") in {"the", "a", "and", "was", "to", "he", "she", "They", "they", "it", "One", "day", "had"} for word in words) > 0.15 * len(words)
    assert run["inputs"]["chat_template"]["sha256"] == run["template_sha256"]
