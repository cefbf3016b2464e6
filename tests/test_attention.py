"""Packed tokens, where a shared prompt is computed once, against ordinary rows and plain formulas.

H query heads, H_kv key and value heads, T unique tokens, n queries and m keys of a conversation
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import groups_of_pairs, make_model
from tiny_models import make_groups, tiny_backbone
from transformers import AutoModel, AutoModelForSequenceClassification

from rmood import attention
from rmood.batching import LAYOUTS, Group, pack, pad
from rmood.errors import UserError
from rmood.loading import load_reward_model
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.model import RewardModel

SETTINGS = {"plain": (0, 0.0), "window": (5, 0.0), "softcap": (0, 2.0), "both": (5, 2.0)}


def seen_keys(n: int, m: int, window: int) -> torch.Tensor:
    """(n, m) which keys each query sees, where the last query has the last key for its own."""
    own = torch.arange(m - n, m)[:, None]
    key = torch.arange(m)
    seen = key <= own
    return seen & (key > own - window) if window else seen


def plain_attention(query, key, value, batch, scale, window, softcap):
    """What attend() computes, one conversation after the other: (T, H, d)."""
    outputs = []
    heads_per_key = query.shape[1] // key.shape[1]
    for (q, q_end), (k, k_end) in zip(pairwise(batch.cu_q.tolist()), pairwise(batch.cu_k.tolist())):
        index = batch.keys[k:k_end]
        keys = key[index].repeat_interleave(heads_per_key, dim=1)  # (m, H, d)
        values = value[index].repeat_interleave(heads_per_key, dim=1)
        scores = torch.einsum("nhd,mhd->hnm", query[q:q_end], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        seen = seen_keys(q_end - q, k_end - k, window)
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hnm,mhd->nhd", weights, values))
    return torch.cat(outputs)


def random_tokens(tokens: int, heads: int, kv_heads: int, dtype=torch.float32):
    """query, key and value, and a gradient of the output."""
    torch.manual_seed(0)
    query, key, value, gradient = (
        torch.randn(tokens, n, 8, dtype=dtype) for n in (heads, kv_heads, kv_heads, heads)
    )
    return [x.requires_grad_() for x in (query, key, value)], gradient


def operator(query, key, value, batch, scale, window, softcap):
    of_batch = (batch.keys, batch.cu_q, batch.cu_k, batch.longest)
    return attention.attend(query, key, value, *of_batch, scale, window, softcap)[0]


def assert_attends_like_plain(batch, kv_heads: int, window: int, softcap: float):
    inputs, gradient = random_tokens(batch.input_ids.shape[1], 4, kv_heads)
    output = operator(*inputs, batch, 0.3, window, softcap)
    gradients = torch.autograd.grad(output, inputs, gradient)
    expected = plain_attention(*inputs, batch, 0.3, window, softcap)
    expected_gradients = torch.autograd.grad(expected, inputs, gradient)
    assert torch.allclose(output, expected, atol=2e-6)
    for ours, plain in zip(gradients, expected_gradients):
        assert torch.allclose(ours, plain, atol=1e-5)


# ---- the operator --------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_queries_see_their_conversation_up_to_themselves(setting, kv_heads):
    """Groups of 1 to 8 responses, outputs and gradients."""
    groups = [group for k in range(1, 9) for group in make_groups(2, responses=k, seed=k)]
    assert_attends_like_plain(pack(groups), kv_heads, *SETTINGS[setting])


@pytest.mark.parametrize("setting", ["plain", "window"])
def test_on_cuda_it_is_one_call_of_flash_attention(setting, flash_on_a_cpu):
    """By a stand-in with the schema and the meaning of torch's kernel: no GPU is needed."""
    groups = [group for k in range(1, 9) for group in make_groups(2, responses=k, seed=k)]
    assert_attends_like_plain(pack(groups), 2, *SETTINGS[setting])
    assert flash_on_a_cpu == {"forward": 1, "backward": 1}


@pytest.fixture
def flash_on_a_cpu(monkeypatch):
    """torch's two FlashAttention operators, by plain formulas on a CPU; how often each is called.

    Sequences end to end; the causal mask is aligned to the lower right; a window counts keys
    before a query's own, -1 is no limit.
    """
    calls = {"forward": 0, "backward": 0}

    def weights_of(query, key, scale, window_left, logsumexp=None):
        """(H, n, m) weights and (H, n) logsumexp of one sequence."""
        scores = torch.einsum("nhd,mhd->hnm", query, key) * scale
        seen = seen_keys(query.shape[0], key.shape[0], window_left + 1)
        scores = scores.masked_fill(~seen, -math.inf)
        logsumexp = scores.logsumexp(-1) if logsumexp is None else logsumexp
        return (scores - logsumexp[..., None]).exp(), logsumexp

    def window_of(scale, window_size_left, window_size_right, **others):
        assert window_size_right == 0 and not any(others.values())
        return scale, window_size_left

    def sequences(cu_q, cu_k, max_q, max_k):
        for (q, q_end), (k, k_end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist())):
            assert q_end - q <= max_q and k_end - k <= max_k
            yield slice(q, q_end), slice(k, k_end)

    def forward(query, key, value, cu_q, cu_k, max_q, max_k, *rest, **settings):
        dropout, is_causal, return_debug_mask = rest
        assert is_causal and not dropout and not return_debug_mask
        calls["forward"] += 1
        scale, window_left = window_of(**settings)
        repeat = query.shape[1] // key.shape[1]
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[1], query.shape[0])
        for q, k in sequences(cu_q, cu_k, max_q, max_k):
            keys, values = (x[k].repeat_interleave(repeat, 1) for x in (key, value))
            weights, sums[:, q] = weights_of(query[q], keys, scale, window_left)
            output[q] = torch.einsum("hnm,mhd->nhd", weights, values)
        nothing = query.new_empty(0)
        return output, sums, nothing, nothing, nothing

    def backward(
        gradient, query, key, value, out, sums, cu_q, cu_k, max_q, max_k, *rest, **settings
    ):
        dropout, is_causal, _, _ = rest
        assert is_causal and not dropout
        calls["backward"] += 1
        scale, window_left = window_of(**settings)
        repeat = query.shape[1] // key.shape[1]
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        for q, k in sequences(cu_q, cu_k, max_q, max_k):
            keys, values = (x[k].repeat_interleave(repeat, 1) for x in (key, value))
            weights, _ = weights_of(query[q], keys, scale, window_left, sums[:, q])
            of_weights = torch.einsum("nhd,mhd->hnm", gradient[q], values)
            delta = (gradient[q] * out[q]).sum(-1).t()[..., None]  # (H, n, 1)
            of_scores = weights * (of_weights - delta) * scale
            of_query[q] = torch.einsum("hnm,mhd->nhd", of_scores, keys)
            of_keys = torch.einsum("hnm,nhd->mhd", of_scores, query[q])
            of_values = torch.einsum("hnm,nhd->mhd", weights, gradient[q])
            of_key[k] = of_keys.unflatten(1, (-1, repeat)).sum(2)
            of_value[k] = of_values.unflatten(1, (-1, repeat)).sum(2)
        return of_query, of_key, of_value

    monkeypatch.setattr(attention, "has_flash", lambda query, value, softcap: not softcap)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls


def test_torchs_own_shapes_of_flash_attention_are_those_of_the_operator(monkeypatch):
    """On meta tensors, through torch's registrations: names, order and shapes of the arguments."""
    monkeypatch.setattr(attention, "has_flash", lambda query, value, softcap: True)
    batch = pack(make_groups(3, responses=4)).to(torch.device("meta"))
    query, key, value = (
        torch.empty(batch.input_ids.shape[1], n, 8, dtype=torch.bfloat16, device="meta")
        for n in (4, 2, 2)
    )
    of_batch = (batch.keys, batch.cu_q, batch.cu_k, batch.longest, 0.3, 5, 0.0)
    kernel = attention.attend._init_fn  # the body for real tensors
    output, sums = kernel(query, key, value, *of_batch)
    assert output.shape == query.shape and output.dtype == torch.bfloat16
    assert sums.shape == (4, query.shape[0]) and sums.dtype == torch.float32
    backward = attention.attend_backward._init_fn
    gradients = backward(output, query, key, value, output, sums, *of_batch)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(
    "what, changes",
    [
        ("float32", {"dtype": torch.float32}),
        ("a head of 12", {"size": 12}),
        ("a head of 512", {"size": 512}),
        ("soft-capped scores", {"softcap": 30.0}),
        ("an older GPU", {"capability": (7, 5)}),
    ],
)
def test_flash_attention_is_asked_only_for_what_it_computes(monkeypatch, what, changes):
    def taken(dtype=torch.bfloat16, size=128, softcap=0.0, capability=(9, 0)) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        tokens = SimpleNamespace(dtype=dtype, shape=(9, 4, size), device=torch.device("cuda"))
        return attention.has_flash(tokens, tokens, softcap)

    assert taken()
    assert not taken(**changes)


@pytest.mark.parametrize("setting", ["plain", "both"])
def test_torch_finds_nothing_wrong_with_the_operator(setting):
    """Its schema, its shapes without data, its gradient, and all of it with dynamic shapes."""
    batch = pack(make_groups(2, responses=3))
    inputs, _ = random_tokens(batch.input_ids.shape[1], 4, 2)
    of_batch = (batch.keys, batch.cu_q, batch.cu_k, batch.longest)
    torch.library.opcheck(attention.attend, (*inputs, *of_batch, 0.3, *SETTINGS[setting]))


def test_gradients_in_float64():
    batch = pack([Group([[7, 8, 1], [7, 8, 2, 3], [7, 8]]), Group([[9, 4], [9, 5]])])
    for setting in SETTINGS.values():
        inputs, _ = random_tokens(batch.input_ids.shape[1], 2, 1, dtype=torch.float64)
        settings = (batch, 0.3, *setting)
        assert torch.autograd.gradcheck(operator, (*inputs, *settings), check_undefined_grad=False)


def test_a_cpu_computes_bf16_attention_in_float32():
    batch = pack(make_groups(3, responses=2))
    inputs, _ = random_tokens(batch.input_ids.shape[1], 4, 2, dtype=torch.bfloat16)
    output = operator(*inputs, batch, 0.3, 0, 0.0)
    in_float32 = operator(*[x.float() for x in inputs], batch, 0.3, 0, 0.0)
    assert torch.equal(output, in_float32.bfloat16())


def test_padding_is_the_last_token_of_its_own_row():
    """Else the gradients of all padding would be added up at one token, one after the other."""
    batch = pack(make_groups(4, responses=3))
    rows = attention.rows_of(batch.keys, batch.cu_q, batch.cu_k, heads=4)
    tokens = torch.arange(batch.input_ids.shape[1])
    assert torch.equal(rows.index[rows.own], tokens)
    conversations = [batch.keys[a:b].tolist() for a, b in pairwise(batch.cu_k.tolist())]
    found = []
    for block in rows.gather(tokens[:, None, None].float()):  # (n, 1, L, 1)
        for row in block[:, 0, :, 0].int().tolist():
            conversation = sorted(set(row))
            padding = [conversation[-1]] * (len(row) - len(conversation))
            assert row == conversation + padding
            found.append(conversation)
    assert sorted(found) == sorted(conversations)
    assert len(rows.index) > len(batch.keys)  # there is padding


def test_blocks_of_rows_are_bounded_by_their_scores(monkeypatch):
    assert attention._block_sizes([30, 25, 19, 10, 7, 6], heads=2) == [2, 1, 2, 1]
    monkeypatch.setattr(attention, "LARGEST_SCORES", 2 * 19**2)
    assert attention._block_sizes([30, 25, 19, 10, 7, 6], heads=2) == [1, 1, 1, 2, 1]


def test_cudnn_attention_is_off():
    """It builds a plan for every new shape, and nearly every pass has new shapes."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# ---- whole models --------------------------------------------------------------------------------


def rewards_and_gradients(model, groups, layout):
    model.zero_grad()
    rewards, _ = model(LAYOUTS[layout](groups))
    bradley_terry_loss(reward_margin(rewards.view(-1, 2))).sum().backward()
    return rewards.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_packed_like_padded(model, groups, checkpointing=False):
    expected, expected_gradients = rewards_and_gradients(model, groups, "padded")
    if checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    rewards, gradients = rewards_and_gradients(model, groups, "packed")
    assert torch.allclose(rewards, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # the comparison would say nothing if all rewards were alike
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        tolerance = 1e-5 * expected_gradients[name].abs().max().item() + 1e-7
        assert torch.allclose(gradient, expected_gradients[name], atol=tolerance, rtol=0), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_tokens_with_shared_prompts_score_and_learn_as_padded_rows(
    any_model_folder, toy_tokenizer, checkpointing
):
    model = load_reward_model(any_model_folder, seed=0).train()
    torch.nn.init.normal_(model.score.weight)
    long_pair = Group([list(range(3, 3 + n)) for n in (100, 90)])
    groups = groups_of_pairs(toy_tokenizer) + [long_pair]
    assert_packed_like_padded(model, groups, checkpointing)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_architectures_pack_the_same_way(kind, checkpointing):
    """Alternating sliding windows, soft-capped scores, experts; 4 responses a prompt."""
    model = reward_model(tiny_backbone(kind)).train()
    assert_packed_like_padded(model, make_groups(4, responses=4), checkpointing)


def reward_model(backbone) -> RewardModel:
    torch.manual_seed(1)
    return RewardModel(backbone, torch.nn.Linear(32, 1, bias=False))


def test_more_responses_per_prompt_pack_the_same_way(any_model_folder):
    model = load_reward_model(any_model_folder, seed=0)
    four = Group([[5, 6, 7] + list(range(20, 20 + n)) for n in (4, 1, 9, 2)])
    groups = [four, Group([[5, 6], [5, 7]])]
    assert torch.allclose(model(pack(groups))[0], model(pad(groups))[0], atol=1e-6)


def test_a_sliding_window_is_kept(tmp_path):
    """Mistral-like attention over the last 8 tokens, against transformers' own mask."""
    window = dict(
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=0,
        layer_types=["sliding_attention"] * 2,
    )
    make_model("qwen3", **window).save_pretrained(tmp_path)
    model = load_reward_model(str(tmp_path), seed=0)
    torch.nn.init.normal_(model.score.weight)
    rows = [list(range(10, 50)), list(range(10, 30)) + [7] * 10]
    ours, _ = model(pack([Group(rows)]))
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, attn_implementation="sdpa"
    ).model
    for reward, row in zip(ours, rows):
        hidden = theirs(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        assert model.score(hidden).item() == pytest.approx(reward.item(), abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "qwen3_moe", "mixtral"])
def test_rewards_are_those_of_transformers_own_attention(kind, layout):
    """Their plain implementation, row by row: windows and soft caps are the config's."""
    backbone = tiny_backbone(kind)
    model = reward_model(backbone)
    groups = make_groups(3, responses=3)
    with torch.no_grad():
        ours, _ = model(LAYOUTS[layout](groups))
        theirs = AutoModel.from_config(backbone.config, attn_implementation="eager")
        theirs.load_state_dict(backbone.state_dict())
        rows = [row for group in groups for row in group.rows]
        hidden = [theirs(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = model.score(torch.stack(hidden))[:, 0]
    assert torch.allclose(ours, expected, atol=1e-5) and expected.std() > 0.1


def test_what_is_not_computed_is_refused():
    query = torch.randn(1, 2, 3, 8)
    causal = SimpleNamespace(is_causal=True)
    with pytest.raises(UserError, match="sinks or a position bias is not supported"):
        attention.packed_attention(causal, query, query, query, None, s_aux=torch.zeros(2))
    with pytest.raises(UserError, match="sees later tokens is not supported"):
        attention.packed_attention(SimpleNamespace(is_causal=False), query, query, query, None)
