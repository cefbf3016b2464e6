import contextlib
import copy
import datetime
import functools
import hashlib
import threading
from pathlib import Path

import pytest
import torch
from conftest import CHATML, DATA, make_prompt, needs_data
from transformers import AutoTokenizer
from transformers.tokenization_python import PythonBackend
from transformers.utils import chat_template_utils

from rmood import tokenization
from rmood.distributed import Process
from rmood.errors import UserError
from rmood.files.rows import write_json
from rmood.files.tables import Conversation
from rmood.tokenization import (
    accepted_turns,
    choose_pad_token,
    common_prefix,
    encode,
    encode_conversations,
    encode_rendered,
    leave_out_long,
    load_tokenizer,
    render,
    rendered_sha256,
    say_other_template_kwargs,
    scored_position,
    show_row,
    template_facts,
    template_sha256,
)


@functools.cache
def real(name: str, template_kwargs: str = ""):
    """A real tokenizer, loaded once: not to be changed."""
    return load_tokenizer(str(DATA / "tokenizers" / name), template_kwargs=template_kwargs)


def answer(text: str) -> Conversation:
    return make_prompt(1) + [{"role": "assistant", "content": text}]


def test_the_scored_token_is_the_last_of_the_rendered_template(toy_tokenizer):
    (ids,), shortened = encode_conversations([answer("cat")], toy_tokenizer, 100)
    assert shortened == []
    assert toy_tokenizer.decode(list(ids)) == render(answer("cat"), toy_tokenizer)
    assert toy_tokenizer.decode(list(ids[-2:])) == "<|im_end|>\n"
    assert scored_position(ids) == len(ids) - 1
    assert "<|im_end|>⟦\\n⟧" in show_row(answer("cat"), toy_tokenizer)


def test_a_long_response_loses_its_end_but_never_the_closing_tokens(toy_tokenizer):
    (whole,), _ = encode_conversations([answer("cat " * 50)], toy_tokenizer, 1000)
    (short,), shortened = encode_conversations([answer("cat " * 50)], toy_tokenizer, 40)
    assert shortened == [0] and len(short) == 40
    assert short[:38] == whole[:38] and short[-2:] == whole[-2:]


def test_a_prompt_that_fills_the_limit_is_refused(toy_tokenizer):
    with pytest.raises(UserError, match="conversation 0: its prompt alone"):
        encode_conversations([answer("cat")], toy_tokenizer, 12)
    with pytest.raises(UserError, match="prompt 3, response 2: its prompt alone"):
        encode_conversations([answer("cat")], toy_tokenizer, 12, names=["prompt 3, response 2"])


def test_training_leaves_out_the_pairs_that_scoring_would_shorten():
    pairs = [[[1, 2, 3], [1, 2]], [[1, 2], [1, 2, 3, 4]], [[1], [2]]]
    assert leave_out_long(pairs, 3) == [0, 2]
    assert leave_out_long(pairs, 4) == [0, 1, 2]
    assert leave_out_long([], 4) == []


def test_the_common_prefix_leaves_every_row_a_token_of_its_own():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    identical = [[1, 2, 3], [1, 2, 3]]
    assert common_prefix(identical) == 2  # the last token is computed twice
    assert common_prefix([[1, 2], [1, 2, 3], [1, 2, 4]]) == 1
    assert common_prefix([[5], [5, 6]]) == 0


def test_pad_equal_to_eos_is_replaced(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    choose_pad_token(tokenizer)
    assert tokenizer.pad_token == "<|pad|>" and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_pad_token_of_its_own_is_kept(toy_tokenizer):
    choose_pad_token(toy_tokenizer)
    assert toy_tokenizer.pad_token == "<|endoftext|>"


def test_a_tokenizer_without_a_chat_template_asks_for_one(toy_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--chat-template FILE"):
        load_tokenizer(str(tmp_path))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}")
    tokenizer = load_tokenizer(str(tmp_path), str(template))
    assert render(answer("cat"), tokenizer) == "|say count 1|cat|"


def test_a_template_that_raises_is_a_user_error(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(UserError, match="no system turns here"):
        render(answer("cat"), tokenizer)


def test_a_refused_conversation_is_named_where_its_name_is_known(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'b' %}{{ raise_exception('not b') }}{% endif %}x"
    )
    conversations = [[{"role": "user", "content": text}] for text in "abc"]
    names = ["row 0", "row 1", "row 2"]
    with pytest.raises(UserError, match=r"^row 1: the chat template refuses .*\(not b\)"):
        tokenization.encode_conversations(conversations, tokenizer, 64, names)


@needs_data
def test_llama_gets_one_bos_and_qwen_its_empty_think_block():
    llama = copy.deepcopy(real("llama3_1"))
    ids = encode([render(answer("cat"), llama)], llama)[0]
    assert ids.count(llama.bos_token_id) == 1 and ids[0] == llama.bos_token_id
    assert llama.decode(ids[-1:]) == "<|eot_id|>"
    choose_pad_token(llama)
    assert llama.pad_token == "<|finetune_right_pad_id|>"
    qwen = real("qwen3")
    assert render(answer("cat"), qwen).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\ncat<|im_end|>\n"
    )


def test_a_large_set_is_tokenized_once_and_known_by_its_content(
    toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 3)
    conversations = [answer("cat " * n) for n in range(4)]
    plain = encode([render(messages, toy_tokenizer) for messages in conversations], toy_tokenizer)
    assert [list(row) for row in encode_rendered(conversations, toy_tokenizer)] == plain
    monkeypatch.setattr(tokenization, "encode", None)  # the second time nothing is tokenized
    assert [list(row) for row in encode_rendered(conversations, toy_tokenizer)] == plain
    changed = copy.deepcopy(toy_tokenizer)
    changed.chat_template += " "
    with pytest.raises(TypeError):
        encode_rendered(conversations[::-1], toy_tokenizer)
    with pytest.raises(TypeError):
        encode_rendered(conversations, changed)


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a broken cache file"])
def test_a_cache_that_cannot_be_used_stops_nothing(toy_tokenizer, tmp_path, monkeypatch, obstacle):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 3)
    conversations = [answer("cat " * n) for n in range(4)]
    plain = [list(row) for row in encode_rendered(conversations, toy_tokenizer)]
    (file,) = (tmp_path / "cache").iterdir()
    if obstacle == "a broken cache file":
        file.write_bytes(b"broken")
    else:
        file.unlink()
        (tmp_path / "cache").rmdir()
        (tmp_path / "cache").write_text("")
    assert [list(row) for row in encode_rendered(conversations, toy_tokenizer)] == plain


def test_a_set_tokenized_in_pieces_is_the_same(toy_tokenizer, monkeypatch):
    conversations = [answer("cat " * n) for n in range(5)]
    whole = encode_rendered(conversations, toy_tokenizer)
    monkeypatch.setattr(tokenization, "PIECE", 2)
    assert encode_rendered(conversations, toy_tokenizer) == whole


# ---- real templates and their traps ------------------------------------------------------------
# Short templates with the feature of the real one that is named; those of Qwen3 and Llama 3.1 are
# the real ones.

LLAMA_3_2 = (  # writes today's date
    "{{- bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- else %}"
    '{%- set date_string = "26 Jul 2024" %}'
    "{%- endif %}"
    "{%- endif %}"
    '{{- "Today Date: " + date_string + "\\n" }}'
    "{%- for m in messages %}{{- m.role + ': ' + m.content | trim + '<|im_end|>' }}{%- endfor %}"
)
MISTRAL_SMALL = "{%- set today = strftime_now('%Y-%m-%d') %}{{- today + messages[-1].content }}"
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
)
SMOLLM2 = (  # adds a system turn of its own
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n'}}{% endfor %}"
)
DEEPSEEK_R1 = (  # drops what was thought
    "{% for m in messages %}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ m.role + ': ' + content + '<|im_end|>' }}{% endfor %}"
)


def with_template(tokenizer, template, folder, **kwargs):
    """The tokenizer with this template, saved and loaded as scripts load it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder), **kwargs)


@pytest.fixture
def tomorrow(monkeypatch):
    """transformers' templates take today for a day in 2031."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    def later() -> None:
        monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)

    return later


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(tokenization, "_said", set())
    monkeypatch.setattr(tokenization, "_refuses_system", {})


@pytest.mark.parametrize("template, date", [(LLAMA_3_2, "26 Jul 2024"), (MISTRAL_SMALL, "2024-07")])
def test_a_template_that_writes_the_date_writes_one_date_on_every_day(
    template, date, toy_tokenizer, tmp_path, tomorrow, capsys
):
    tokenizer = with_template(toy_tokenizer, template, tmp_path)
    assert "its chat template writes today's date; here it writes 26 Jul 2024" in (
        capsys.readouterr().err
    )
    today = render(answer("cat"), tokenizer)
    facts = template_facts(tokenizer)
    assert date in today
    tomorrow()
    tokenizer.save_pretrained(tmp_path / "saved")  # as train.py saves it, for others to load
    raw = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert raw.apply_chat_template(answer("cat"), tokenize=False) == today
    again = with_template(toy_tokenizer, template, tmp_path)
    assert render(answer("cat"), again) == today and template_facts(again) == facts


def test_the_date_of_llama_can_be_set(toy_tokenizer, tmp_path):
    kwargs = '{"date_string": "01 Jan 2026"}'
    tokenizer = with_template(toy_tokenizer, LLAMA_3_2, tmp_path, template_kwargs=kwargs)
    assert "Today Date: 01 Jan 2026\n" in render(answer("cat"), tokenizer)


def test_a_date_that_cannot_be_fixed_is_a_warning(toy_tokenizer, tmp_path, capsys):
    template = "{% set form = '%Y' %}{{ strftime_now(form) + messages[-1].content }}"
    with_template(toy_tokenizer, template, tmp_path)
    assert "writes the date of the day in a way that cannot be fixed" in capsys.readouterr().err


def test_a_date_that_is_not_fixed_gives_the_cache_another_key(
    toy_tokenizer, tmp_path, monkeypatch, tomorrow
):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 1)
    template = "{% set form = '%Y' %}{{ strftime_now(form) + messages[-1].content }}"
    tokenizer = with_template(toy_tokenizer, template, tmp_path / "odd")
    before = encode_rendered([answer("cat")], tokenizer)
    tomorrow()
    after = encode_rendered([answer("cat")], tokenizer)
    assert before != after and tokenizer.decode(list(after[0])) == "2031cat"


def test_templates_are_compared_by_what_they_render(toy_tokenizer):
    other = copy.deepcopy(toy_tokenizer)
    other.chat_template = "{# a remark #}" + other.chat_template
    facts, others = template_facts(toy_tokenizer), template_facts(other)
    assert facts["template_sha256"] != others["template_sha256"]
    assert facts["rendered_sha256"] == others["rendered_sha256"]
    other.chat_template = other.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    assert template_facts(other)["rendered_sha256"] != facts["rendered_sha256"]


def test_the_hash_of_the_source_is_that_of_older_run_files(toy_tokenizer, toy_model_folder):
    """For a template without a date, and without --template-kwargs: nothing is put into it."""
    source = hashlib.sha256(toy_tokenizer.chat_template.encode()).hexdigest()
    assert template_facts(load_tokenizer(toy_model_folder))["template_sha256"] == source


def test_an_empty_system_turn_that_gemma_refuses_is_left_out_and_said_once(
    toy_tokenizer, tmp_path, capsys
):
    tokenizer = with_template(toy_tokenizer, GEMMA_2, tmp_path)
    expected = (
        "<start_of_turn>user\nsay count 1<end_of_turn>\n<start_of_turn>model\ncat<end_of_turn>\n"
    )
    assert render(answer("cat"), tokenizer) == expected
    assert render(answer("cat"), tokenizer) == expected
    said = capsys.readouterr().err
    assert said.count("the chat template refuses system turns: empty ones are left out") == 1
    meant = [{"role": "system", "content": "Be brief."}, *answer("cat")[1:]]
    with pytest.raises(UserError, match=r"refuses the turns \[system, user, .*not supported"):
        render(meant, tokenizer)
    assert accepted_turns(answer("cat"), toy_tokenizer) == answer("cat")  # ChatML takes it


def test_a_system_turn_of_the_templates_own_is_there_once_and_an_empty_one_replaces_it(
    toy_tokenizer, tmp_path
):
    tokenizer = with_template(toy_tokenizer, SMOLLM2, tmp_path)
    own = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
    without = answer("cat")[1:]
    assert render(without, tokenizer).startswith(own) and render(without, tokenizer).count(own) == 1
    assert render(answer("cat"), tokenizer).startswith("<|im_start|>system\n<|im_end|>\n")
    (ids,), _ = encode_conversations([without], tokenizer, 200)
    (short,), _ = encode_conversations([answer("cat " * 99)[1:]], tokenizer, 120)
    assert len(short) == 120 and short[:40] == ids[:40] and short[-2:] == ids[-2:]


@needs_data
@pytest.mark.parametrize(
    "response, kept",
    [
        ("<think>\nfirst\n</think>\n\n" + "cat " * 500, "<think>\nfirst\n</think>\n\ncat cat"),
        ("<think>\n" + "then " * 500 + "\n</think>\n\ncat", "<think>\nthen then"),
        ("<think>\n" + "then " * 500, "<think>\nthen then"),  # sampling ended while it thought
        ("cat " * 500, "<think>\n\n</think>\n\ncat cat"),
    ],
)
def test_a_cut_response_of_qwen_that_thought_keeps_its_closing_tokens(response, kept):
    qwen = real("qwen3")
    (ids,), shortened = encode_conversations([answer(response)], qwen, 60)
    text = qwen.decode(list(ids))
    assert shortened == [0] and len(ids) == 60
    assert kept in text and text.endswith(("cat<|im_end|>\n", "then<|im_end|>\n"))


def test_a_response_is_cut_where_the_template_drops_what_was_thought(toy_tokenizer, tmp_path):
    tokenizer = with_template(toy_tokenizer, DEEPSEEK_R1, tmp_path)
    (ids,), _ = encode_conversations([answer("so</think>" + "cat " * 99)], tokenizer, 60)
    text = tokenizer.decode(list(ids))
    assert "assistant: cat cat" in text and text.endswith("cat<|im_end|>")


def test_a_response_that_the_prompt_repeats_is_cut_where_it_stands(toy_tokenizer):
    messages = [
        {"role": "user", "content": "say ⟦response⟧ and cat"},
        {"role": "assistant", "content": "cat " * 50},
    ]
    (ids,), _ = encode_conversations([messages], toy_tokenizer, 60)
    assert toy_tokenizer.decode(list(ids)).endswith("cat<|im_end|>\n") and len(ids) == 60


def test_a_response_that_no_template_writes_cannot_be_cut(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(UserError, match="conversation 0: too long, and the chat template does not"):
        encode_conversations([answer("cat " * 50)], tokenizer, 40)


# ---- --template-kwargs ---


@needs_data
def test_qwen_thinks_or_not_as_template_kwargs_say():
    prompt = make_prompt(1)
    plain = real("qwen3")
    quiet = real("qwen3", '{"enable_thinking": false}')
    starts = "<|im_start|>assistant\n"
    assert render(prompt, plain, add_generation_prompt=True).endswith(starts)
    sampled_after = render(prompt, quiet, add_generation_prompt=True)
    assert sampled_after.endswith(starts + "<think>\n\n</think>\n\n")
    scored = render(answer("cat"), quiet)
    assert scored == sampled_after + "cat<|im_end|>\n" == render(answer("cat"), plain)
    explicit = plain.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert explicit == sampled_after
    assert template_sha256(quiet) != template_sha256(plain)  # a journal of one is not the other's


def test_variables_are_kept_in_the_saved_template_and_give_way_to_others(toy_tokenizer, tmp_path):
    template = "\n{{ mood }}|{{ size }}|{{ warm }}|{{ messages[-1].content }}"
    kwargs = '{"mood": "a \\"b\\" \\u00e9 {{ x }}", "size": 1.5, "warm": true}'
    tokenizer = with_template(toy_tokenizer, template, tmp_path, template_kwargs=kwargs)
    assert render(answer("cat"), tokenizer) == '\na "b" \u00e9 {{ x }}|1.5|True|cat'
    tokenizer.save_pretrained(tmp_path / "saved")
    raw = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert raw.apply_chat_template(answer("cat"), tokenize=False) == render(
        answer("cat"), tokenizer
    )
    again = load_tokenizer(str(tmp_path / "saved"), template_kwargs='{"mood": "other"}')
    assert render(answer("cat"), again) == "\nother|1.5|True|cat"


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"a b": 1}', "'a b' must be a name"),
        ('{"a": [1]}', "'a' must be a name with true, false, a number or a text"),
        ('{"a": null}', "'a' must be a name with true"),
    ],
)
def test_template_kwargs_that_make_no_sense_are_refused(kwargs, words, toy_model_folder):
    with pytest.raises(UserError, match=words) as raised:
        load_tokenizer(toy_model_folder, template_kwargs=kwargs)
    assert "--template-kwargs" in str(raised.value) and "\n" not in str(raised.value)


def test_a_variable_that_the_template_does_not_read_is_said(toy_model_folder, capsys):
    load_tokenizer(toy_model_folder, template_kwargs='{"enable_thinkng": false}')
    assert "does not read 'enable_thinkng' of --template-kwargs" in capsys.readouterr().err


@needs_data
def test_other_variables_for_sampling_than_for_scoring_are_said(tmp_path, capsys):
    responses = str(tmp_path / "responses.json")
    write_json(responses, [])
    quiet = '{"enable_thinking": false}'
    write_json(f"{responses}.run.json", {"config": {"template_kwargs": quiet}})
    qwen = real("qwen3")
    llama = real("llama3_1")
    say_other_template_kwargs(qwen, quiet, responses)
    say_other_template_kwargs(llama, "", responses)  # its template knows no such variable
    assert capsys.readouterr().err == ""
    say_other_template_kwargs(qwen, "", responses)
    said = capsys.readouterr().err
    assert "sampled with enable_thinking = false, it is scored with no enable_thinking" in said
    tokenization._said.clear()
    pairs = str(tmp_path / "pairs.jsonl")  # made from these responses
    write_json(f"{pairs}.run.json", {"inputs": {"responses": {"path": responses}}, "config": {}})
    say_other_template_kwargs(qwen, '{"enable_thinking": true}', pairs)
    assert "it is scored with enable_thinking = true" in capsys.readouterr().err


# ---- several templates, slow tokenizers, tools ---


def test_of_templates_by_name_the_default_is_taken_and_for_tools_the_one_for_tools(
    toy_tokenizer, tmp_path
):
    templates = {"default": CHATML, "tool_use": "{{ tools | length }} tools, " + CHATML}
    tokenizer = with_template(toy_tokenizer, templates, tmp_path)
    assert render(answer("cat"), tokenizer) == render(answer("cat"), toy_tokenizer)
    tools = [{"type": "function", "function": {"name": "sum"}}]
    called = [answer("cat")[0] | {"tools": tools}, *answer("cat")[1:]]
    assert render(called, tokenizer) == "1 tools, " + render(answer("cat"), toy_tokenizer)
    assert rendered_sha256(tokenizer) == rendered_sha256(toy_tokenizer)
    encode_conversations([answer("cat " * 50)], tokenizer, 40)
    with pytest.raises(
        UserError, match="templates are named rag, tool_use, none of them 'default'"
    ):
        with_template(toy_tokenizer, {"rag": CHATML, "tool_use": CHATML}, tmp_path / "rag")


@needs_data
def test_tools_reach_the_real_templates():
    tools = [{"type": "function", "function": {"name": "add_numbers", "parameters": {}}}]
    messages = [make_prompt(1)[0] | {"tools": tools}, *answer("cat")[1:]]
    for name in ("qwen3", "llama3_1"):
        tokenizer = real(name)
        text = render(messages, tokenizer)
        assert "add_numbers" in text and text != render(answer("cat"), tokenizer)


class SlowTokenizer(PythonBackend):
    """One byte, one token; in Python, without the library tokenizers."""

    shift = 0

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text: str) -> list[str]:
        return [chr(byte) for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def save_vocabulary(self, folder: str, filename_prefix: str | None = None) -> tuple[str]:
        path = f"{folder}/vocab.txt"
        Path(path).write_text(str(self.shift))
        return (path,)


def test_a_slow_tokenizer_has_a_cache_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 3)
    slow = SlowTokenizer(eos_token="<|im_end|>", chat_template=CHATML)
    assert not hasattr(slow, "backend_tokenizer")
    conversations = [answer("cat " * n) for n in range(4)]
    rows = encode_rendered(conversations, slow)
    texts = [render(messages, slow) for messages in conversations]
    assert [list(row) for row in rows] == encode(texts, slow)
    monkeypatch.setattr(tokenization, "encode", None)  # the second time nothing is tokenized
    assert encode_rendered(conversations, slow) == rows
    slow.shift = 1  # another vocabulary
    with pytest.raises(TypeError):
        encode_rendered(conversations, slow)
    choose_pad_token(slow)
    assert slow.pad_token == "<|pad|>"


def test_each_machine_tokenizes_once_and_local_rank_0_is_first(
    toy_tokenizer, tmp_path, monkeypatch
):
    """Two ranks, here as two threads that share a barrier."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 3)
    barrier = threading.Barrier(2, timeout=30)
    tokenized = []
    encode_all = tokenization._encode_all

    class Rank:
        def __init__(self, number: int):
            self.number = number

        @contextlib.contextmanager
        def local_main_first(self):
            if self.number:
                barrier.wait()
            yield
            if not self.number:
                barrier.wait()

    def counted(conversations, *rest):
        tokenized.append(threading.current_thread().name)
        return encode_all(conversations, *rest)

    monkeypatch.setattr(tokenization, "_encode_all", counted)
    conversations = [answer("cat " * n) for n in range(4)]
    results = {}

    def run(number: int) -> None:
        results[number] = encode_rendered(conversations, toy_tokenizer, process=Rank(number))

    threads = [threading.Thread(target=run, args=(n,), name=f"rank {n}") for n in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokenized == ["rank 0"] and results[0] == results[1]
    plain = encode([render(messages, toy_tokenizer) for messages in conversations], toy_tokenizer)
    assert [list(row) for row in results[1]] == plain


def test_prompts_are_kept_apart_from_conversations_in_the_cache(
    toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(tokenization, "CACHED_FROM", 1)
    prompt = make_prompt(1)
    as_prompt = encode_rendered([prompt], toy_tokenizer, add_generation_prompt=True)
    as_text = encode_rendered([prompt], toy_tokenizer)
    assert as_prompt[0][: len(as_text[0])] == as_text[0] and len(as_prompt[0]) > len(as_text[0])


@pytest.mark.parametrize(
    "local_rank, expected", [("0", ["block", "barrier"]), ("3", ["barrier", "block"])]
)
def test_local_rank_0_runs_a_block_before_the_others_begin(local_rank, expected, monkeypatch):
    events = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(Process, "barrier", lambda process: events.append("barrier"))
    process = Process(int(local_rank), 8, torch.device("cpu"), None)
    with process.local_main_first():
        events.append("block")
    assert events == expected
    with pytest.raises(UserError), process.local_main_first():
        raise UserError("a template refuses a row")  # the others must not wait for ever
    assert events == [*expected, "barrier"]
