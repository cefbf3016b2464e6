"""Causal attention on packed tokens, registered with transformers as "rmood".

A pass holds unique tokens: a prompt that K conversations share is computed once. Each conversation
is one sequence of attention, and queries never move:

    conversation 1 of a group     queries: prompt and response 1    keys: prompt and response 1
    conversation k > 1            queries: response k               keys: prompt and response k

The queries of a conversation lie end to end among the T tokens, so `cu_q` (where each begins) is
all that they need. Keys and values are read by an index, `keys`. A query sees the keys up to its
own: where there are fewer queries than keys, the causal mask is aligned to the lower right, as
FlashAttention does since version 2.1. A prompt's keys and values get the gradients of all its
responses, as if the prompt had been computed K times.

T unique tokens of a pass, S conversations, R tokens of all conversations (a prompt counts in each)
H query heads, H_kv key and value heads, G = H / H_kv, d size of a head
n conversations as right-padded rows of L tokens
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .errors import UserError

# cuDNN builds and keeps a plan for every new shape, and nearly every pass has new shapes.
torch.backends.cuda.enable_cudnn_sdp(False)

LARGEST_SCORES = 2**27  # scores of all heads that a block of rows may have: 0.5 GiB in float32


def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    sliding_window=None,
    softcap=None,
    keys=None,
    cu_q=None,
    cu_k=None,
    longest=None,
    **kwargs,
):
    """Causal attention inside each conversation, as transformers calls it.

    query (1, H, T, d), key and value (1, H_kv, T, d) -> (1, T, H, d), and None for the weights.
    sliding_window: a query sees its own key and the sliding_window - 1 before it. softcap: scores
    become softcap * tanh(scores / softcap) (Gemma 2).

    keys, cu_q, cu_k and longest are those of the Batch: RewardModel.forward passes them to the
    backbone, and transformers hands them down to here. Without them (the padded layout) the tokens
    are ordinary right-padded rows.
    """
    check_supported(module, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    softcap = softcap or 0.0
    if keys is None:
        return padded_attention(query, key, value, scale, window, softcap), None
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    output, _ = attend(query, key, value, keys, cu_q, cu_k, longest, scale, window, softcap)
    return output[None], None


def check_supported(module, settings: dict) -> None:
    """Raise UserError where a layer asks for what is not computed here. settings: by name."""
    name = type(module).__name__
    if settings.get("s_aux") is not None or settings.get("position_bias") is not None:
        raise UserError(
            f"{name}: attention with sinks or a position bias is not supported: use another model"
        )
    if not getattr(module, "is_causal", True):
        raise UserError(
            f"{name}: attention that sees later tokens is not supported: use a causal model"
        )


# ---- the operator ------------------------------------------------------------------------------
# torch.compile sees one operator of tensors, so that a layer is one graph for all lengths.


@torch.library.custom_op("rmood::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    longest: int,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """query (T, H, d), key and value (T, H_kv, d) -> output (T, H, d), and logsumexp (H, T).

    keys (R,) int64, cu_q and cu_k (S + 1,) int32, longest: see batching.Batch. window 0: none;
    softcap 0: none. logsumexp: of each query's scores, float32, for the backward pass.
    """
    if has_flash(query, value, softcap):
        output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key.index_select(0, keys),
            value.index_select(0, keys),
            cu_q,
            cu_k,
            longest,
            longest,
            dropout_p=0.0,
            is_causal=True,
            return_debug_mask=False,
            **_flash_settings(scale, window),
        )
        return output, logsumexp
    return _attend_in_rows(query, key, value, keys, cu_q, cu_k, scale, window, softcap)


@torch.library.custom_op("rmood::attend_backward", mutates_args=())
def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    keys: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    longest: int,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """gradient (T, H, d) of the output -> gradients of query, key and value."""
    if has_flash(query, value, softcap):
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty(0, device=query.device)
        of_query, of_keys, of_values = torch.ops.aten._flash_attention_backward(
            gradient,
            query,
            key.index_select(0, keys),
            value.index_select(0, keys),
            output,
            logsumexp,
            cu_q,
            cu_k,
            longest,
            longest,
            dropout_p=0.0,
            is_causal=True,
            rng_state=no_dropout,
            unused=unused,
            **_flash_settings(scale, window),
        )
        of_key = torch.zeros_like(key).index_add_(0, keys, of_keys)
        of_value = torch.zeros_like(value).index_add_(0, keys, of_values)
        return of_query, of_key, of_value
    return _attend_in_rows_backward(
        gradient, query, key, value, output, logsumexp, keys, cu_q, cu_k, scale, window, softcap
    )


def has_flash(query: Tensor, value: Tensor, softcap: float) -> bool:
    """Whether FlashAttention on CUDA takes this: else the conversations are padded rows."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and not softcap
        and size == value.shape[-1]
        and size % 8 == 0
        and size <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _flash_settings(scale: float, window: int) -> dict:
    """FlashAttention counts a window by the keys before a query's own; -1 is all of them."""
    return {"scale": scale, "window_size_left": window - 1, "window_size_right": 0}


@attend.register_fake
def _(query, key, value, keys, cu_q, cu_k, longest, scale, window, softcap):
    tokens, heads, _ = query.shape
    output = query.new_empty(tokens, heads, value.shape[-1])
    return output, query.new_empty(heads, tokens, dtype=_accurate(query.dtype))


@attend_backward.register_fake
def _(gradient, query, key, value, *rest):
    return tuple(torch.empty_like(x) for x in (query, key, value))


def _save_for_backward(ctx, inputs, output) -> None:
    query, key, value, keys, cu_q, cu_k, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *output, keys, cu_q, cu_k)
    ctx.set_materialize_grads(False)  # the logsumexp has no gradient


def _backward(ctx, gradient, _):
    of_inputs = attend_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.settings)
    return (*of_inputs, *[None] * (3 + len(ctx.settings)))


attend.register_autograd(_backward, setup_context=_save_for_backward)


# ---- without FlashAttention: conversations as right-padded rows, in blocks of similar length ----


@dataclass(frozen=True)
class Rows:
    """The conversations as right-padded rows, in blocks of similar length; P tokens in all rows,
    padding included.

    A prompt's token occurs in the row of each response, with the same output. It is read from one
    row, `own`, and only that row receives its gradient. A row is padded by repeating its last
    token. With one padding token for all rows, index_add_ would add all their (zero) gradients to
    one memory location, one after another.
    """

    shapes: list[tuple[int, int]]  # (n, L) of each block
    index: Tensor  # (P,) of the T tokens
    own: Tensor  # (T,) of the P: where each token's output is read

    def gather(self, x: Tensor) -> list[Tensor]:
        """(T, heads, d) -> (n, heads, L, d) of each block"""
        return self.split(x.index_select(0, self.index))

    def split(self, x: Tensor) -> list[Tensor]:
        """(P, heads, d) -> (n, heads, L, d). A CPU computes in float32: bf16 is slower there."""
        if x.device.type == "cpu":
            x = x.to(_accurate(x.dtype))
        blocks = x.split([n * length for n, length in self.shapes])
        return [x.unflatten(0, shape).transpose(1, 2) for x, shape in zip(blocks, self.shapes)]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """(n, heads, L, d) of each block -> (P, heads, d)"""
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in blocks])


def _attend_in_rows(query, key, value, keys, cu_q, cu_k, scale, window, softcap):
    """attend() by padded rows."""
    rows = rows_of(keys, cu_q, cu_k, query.shape[1])
    blocks = zip(*[rows.gather(x) for x in (query, key, value)])
    results = [_attend_row(*block, scale, window, softcap) for block in blocks]
    output = rows.join([output for output, _ in results]).index_select(0, rows.own)
    logsumexp = rows.join([sums for _, sums in results]).index_select(0, rows.own)  # (T, H)
    return output.to(query.dtype), logsumexp.t().contiguous()


def _attend_in_rows_backward(
    gradient, query, key, value, output, logsumexp, keys, cu_q, cu_k, scale, window, softcap
):
    """attend_backward() by padded rows."""
    rows = rows_of(keys, cu_q, cu_k, query.shape[1])
    of_outputs = gradient.new_zeros(len(rows.index), *gradient.shape[1:])
    of_outputs.index_copy_(0, rows.own, gradient)
    inputs = [rows.gather(x) for x in (query, key, value, output)]
    sums = [x[..., 0] for x in rows.gather(logsumexp.t()[..., None])]  # (n, H, L)
    blocks = zip(rows.split(of_outputs), *inputs, sums)
    results = [_attend_row_backward(*block, scale, window, softcap) for block in blocks]
    of_queries, of_keys, of_values = (rows.join(blocks) for blocks in zip(*results))
    of_query = of_queries.index_select(0, rows.own).to(query.dtype)
    return of_query, _add_up(of_keys, rows.index, key), _add_up(of_values, rows.index, value)


def _add_up(gradients: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """(P, heads, d) gradients of tokens in all their rows -> (T, heads, d)"""
    total = torch.zeros_like(like, dtype=_accurate(like.dtype))
    return total.index_add_(0, index, gradients.to(total.dtype)).to(like.dtype)


@functools.lru_cache(maxsize=2)  # tensors are equal if they are one: all layers of a pass hit
def rows_of(keys: Tensor, cu_q: Tensor, cu_k: Tensor, heads: int) -> Rows:
    """The rows of a pass, longest first; heads: H."""
    starts = cu_k[:-1].long()
    lengths = cu_k.diff().long()
    queries = cu_q.diff().long()
    order = lengths.argsort(descending=True, stable=True)
    sorted_lengths = lengths[order].tolist()
    shapes = []
    index = []
    row_starts = torch.empty_like(starts)  # of each conversation, among the P tokens
    end = 0
    first = 0
    for size in _block_sizes(sorted_lengths, heads):
        members = order[first : first + size]
        longest = sorted_lengths[first]
        position = torch.arange(longest, device=keys.device)
        last = lengths[members, None] - 1
        of_block = keys[starts[members, None] + torch.minimum(position, last)]  # (n, L)
        shapes.append((size, longest))
        index.append(of_block.flatten())
        row_starts[members] = end + longest * torch.arange(size, device=keys.device)
        end += size * longest
        first += size
    # the queries of a conversation are the last tokens of its row
    shift = row_starts + lengths - queries - cu_q[:-1]
    own = shift.repeat_interleave(queries) + torch.arange(int(cu_q[-1]), device=keys.device)
    return Rows(shapes, torch.cat(index), own)


def _block_sizes(lengths: list[int], heads: int) -> list[int]:
    """Rows of each block. A new one begins where a row has under 2/3 of the block's longest, or
    where the scores of another row would be too many."""
    sizes: list[int] = []
    longest = most = 0  # tokens of the newest block's first row, and rows that it may have
    for length in lengths:
        if not sizes or length < longest * 2 / 3 or sizes[-1] == most:
            sizes.append(0)
            longest = length
            most = max(1, LARGEST_SCORES // (heads * longest**2))
        sizes[-1] += 1
    return sizes


def _accurate(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where that is asked for."""
    return torch.promote_types(dtype, torch.float32)


# ---- one block of rows ---------------------------------------------------------------------------
# query (n, H, L, d), key and value (n, H_kv, L, d)


def padded_attention(query, key, value, scale: float, window: int, softcap: float) -> Tensor:
    """The padded layout -> (n, L, H, d): plain, to read and to compare with.

    Padding on the right needs no mask: no real token sees what comes after it.
    """
    dtype = query.dtype
    if query.device.type == "cpu":
        query, key, value = (x.to(_accurate(dtype)) for x in (query, key, value))
    if softcap:
        scores = _scores(query, key, scale, window, softcap)
        weights = scores.softmax(-1).to(value.dtype)
        output = (weights @ value[:, :, None]).flatten(1, 2)
    else:
        mask = _mask(query, window) if 0 < window < query.shape[2] else None
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output.transpose(1, 2).to(dtype)


def _attend_row(query, key, value, scale: float, window: int, softcap: float):
    """-> output (n, H, L, d), logsumexp (n, H, L)"""
    if _has_cpu_flash(query, value, softcap):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, **_cpu_flash_settings(query, scale, window)
        )
    scores = _scores(query, key, scale, window, softcap)
    logsumexp = scores.logsumexp(-1)
    weights = (scores - logsumexp[..., None]).exp().to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2), logsumexp.flatten(1, 2)


def _attend_row_backward(
    of_output, query, key, value, output, logsumexp, scale: float, window: int, softcap: float
):
    """of_output, output (n, H, L, d), logsumexp (n, H, L) -> gradients of query, key and value.

    Dao et al. 2022, appendix B.2: with scores S, weights P = exp(S - logsumexp) and output O = P V,
    dV = P^T dO, dP = dO V^T and dS = P * (dP - sum(dO * O)).
    """
    if _has_cpu_flash(query, value, softcap):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            of_output,
            query,
            key,
            value,
            output,
            logsumexp,
            dropout_p=0.0,
            **_cpu_flash_settings(query, scale, window),
        )
    grouped = (key.shape[1], query.shape[1] // key.shape[1])  # H_kv, G
    scores = _scores(query, key, scale, window, softcap)
    weights = (scores - logsumexp.unflatten(1, grouped)[..., None]).exp()
    of_output, output = (x.unflatten(1, grouped) for x in (of_output, output))
    of_value = (weights.to(value.dtype).mT @ of_output).sum(2)
    of_weights = of_output @ value[:, :, None].mT
    of_scores = weights * (of_weights - (of_output * output).sum(-1, keepdim=True))
    if softcap:  # d tanh(x) / dx = 1 - tanh(x)^2
        of_scores *= 1 - (scores / softcap).clamp(min=-1) ** 2
    of_scores = (of_scores * scale).to(query.dtype)
    of_query = (of_scores @ key[:, :, None]).flatten(1, 2)
    of_key = (of_scores.mT @ query.unflatten(1, grouped)).sum(2)
    return of_query, of_key, of_value


def _has_cpu_flash(query: Tensor, value: Tensor, softcap: float) -> bool:
    return query.device.type == "cpu" and not softcap and query.shape[-1] == value.shape[-1]


def _cpu_flash_settings(query: Tensor, scale: float, window: int) -> dict:
    length = query.shape[2]
    if not 0 < window < length:
        return {"is_causal": True, "scale": scale}
    mask = query.new_zeros(length, length).masked_fill_(~_mask(query, window), -torch.inf)
    return {"is_causal": False, "attn_mask": mask, "scale": scale}


def _scores(query: Tensor, key: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """(n, H_kv, G, L, L) scores, those of keys that a query does not see are -inf."""
    groups = query.unflatten(1, (key.shape[1], -1))  # (n, H_kv, G, L, d)
    scores = (groups @ key[:, :, None].mT).to(_accurate(query.dtype)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~_mask(query, window), -torch.inf)


def _mask(query: Tensor, window: int) -> Tensor:
    """(L, L) whether each query sees each key: its own and those before, within the window."""
    position = torch.arange(query.shape[2], device=query.device)
    distance = position[:, None] - position
    seen = distance >= 0
    return seen & (distance < window) if window else seen


AttentionInterface.register("rmood", packed_attention)
