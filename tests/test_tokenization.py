import copy

import pytest
from conftest import DATA, make_prompt, needs_data

from rmood import tokenization
from rmood.errors import UserError
from rmood.files.tables import Conversation
from rmood.tokenization import (
    choose_pad_token,
    common_prefix,
    encode,
    encode_conversations,
    encode_rendered,
    leave_out_long,
    load_tokenizer,
    render,
    scored_position,
    show_row,
)


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


@needs_data
def test_a_refused_conversation_is_named_where_its_name_is_known(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'b' %}{{ raise_exception('not b') }}{% endif %}x"
    )
    conversations = [[{"role": "user", "content": text}] for text in "abc"]
    names = ["row 0", "row 1", "row 2"]
    with pytest.raises(UserError, match=r"^row 1: the chat template refuses .*\(not b\)"):
        tokenization.encode_conversations(conversations, tokenizer, 64, names)


def test_llama_gets_one_bos_and_qwen_its_empty_think_block():
    llama = load_tokenizer(str(DATA / "tokenizers" / "llama3_1"))
    ids = encode([render(answer("cat"), llama)], llama)[0]
    assert ids.count(llama.bos_token_id) == 1 and ids[0] == llama.bos_token_id
    assert llama.decode(ids[-1:]) == "<|eot_id|>"
    choose_pad_token(llama)
    assert llama.pad_token == "<|finetune_right_pad_id|>"
    qwen = load_tokenizer(str(DATA / "tokenizers" / "qwen3"))
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
