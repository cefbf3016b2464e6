"""Sampling with a cache: many prompts, N responses each, in one batch.

    P prompts, R = P * N responses, of which A are not finished yet; L prompt length, T new tokens at most, V vocabulary

What transformers' generate() does not do: the prompt is computed once for its N responses, finished responses leave the
batch, and each response has random numbers of its own. 5,600 tokens/s against 1,050 on one core (a Qwen3 of 0.75M
weights, 256 prompts of 12 to 35 tokens, 2 responses each of 13 tokens on average and 56 at most).
"""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import BadInput, check_complete, model_folder, one_line


def load_causal_lm(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A language model from a folder or hub name. Only safetensors are read."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    try:
        how = dict(use_safetensors=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how)
        model = model.to(device).eval()
    except Exception as error:  # transformers, safetensors and the device raise many kinds
        raise BadInput(f"{name}: the model could not be loaded ({one_line(error)}): check the name or path, the access to it, and --device")
    check_complete(name, info)
    return model


def end_tokens(model: PreTrainedModel, tokenizer) -> list[int]:
    """Tokens that end a response: the model's and the tokenizer's, as in vLLM. Qwen's base models name <|endoftext|>, their tokenizer <|im_end|>."""
    named = model.generation_config.eos_token_id  # one, several or none
    return sorted({*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})


@torch.inference_mode()
def generate(
    model,
    prompts: list[list[int]],
    room: list[int],
    luck: torch.Tensor,
    ends: list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    finished: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """New token ids of R responses, prompt by prompt, each with its end token where it came to one.

    luck: (R, T) numbers in [0, 1) that decide which token is drawn. So a response does not depend on who shares its
    batch, but for rounding. room: new tokens that a response to each prompt may have. finished: told how many just ended.
    """
    P, N, device = len(prompts), len(luck) // len(prompts), luck.device
    L, T = max(map(len, prompts)), max(room)
    ids = torch.tensor([[0] * (L - len(row)) + row for row in prompts], device=device)  # (P, L) padded on the left
    mask = torch.tensor([[0] * (L - len(row)) + [1] * len(row) for row in prompts], device=device)  # (P, L)
    output = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(N)
    logits = output.logits[:, -1].repeat_interleave(N, dim=0)  # (R, V)
    mask = mask.repeat_interleave(N, dim=0)  # (R, L)
    limit = torch.tensor(room, device=device).repeat_interleave(N)  # (R,)
    new_tokens = torch.full((P * N, T), -1, device=device)  # (R, T) -1 after the end
    end_ids, alive = torch.tensor(ends, device=device, dtype=torch.long), torch.arange(P * N, device=device)
    for step in range(T):
        token = draw(logits, luck[alive, step], temperature, top_p)  # (A,)
        new_tokens[alive, step] = token
        going = (~torch.isin(token, end_ids) & (step + 1 < limit[alive])).nonzero()[:, 0]
        finished(len(alive) - len(going))
        if len(going) == 0:
            break
        if len(going) < len(alive):
            alive, token, mask = alive[going], token[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)  # (A, L + step + 1)
        output = model(input_ids=token[:, None], attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]  # (A, V)
    return [[token for token in row if token >= 0] for row in new_tokens.tolist()]


def draw(logits: torch.Tensor, luck: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """(A, V) logits, (A,) numbers in [0, 1) -> (A,) tokens: the one in whose stretch of the running sum the number falls.

    Probabilities .5 .2 .3 have the running sum .5 .7 1: luck 0.4 draws token 0, 0.6 token 1, 0.8 token 2.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    probability = torch.softmax(logits.float() / temperature, dim=1)  # (A, V)
    if top_p < 1:
        probability, tokens = probability.sort(dim=1, descending=True, stable=True)
        probability = probability * (probability.cumsum(1) - probability < top_p)  # kept: tokens that begin below top_p
    running_sum = probability.cumsum(1, dtype=torch.float64)  # (A, V) in float32 the rare tokens of a large vocabulary would vanish
    place = torch.searchsorted(running_sum, luck[:, None] * running_sum[:, -1:], right=True).clamp(max=logits.shape[1] - 1)  # (A, 1)
    return (tokens.gather(1, place) if top_p < 1 else place)[:, 0]
