"""Sampling with a key-value cache: many prompts, N responses each, in one batch.

    P prompts, R = P * N responses, A of them not finished yet,
    L tokens of the longest prompt, T new tokens at most, V vocabulary

What transformers' generate() does not do: the prompt is computed once for its N responses, finished
responses leave the batch, and each response has random numbers of its own. 5,600 tokens/s against
1,050 on one core (a Qwen3 of 0.75M weights, 256 prompts of 12 to 35 tokens, 2 responses each of 13
tokens on average and 56 at most).
"""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .errors import UserError, one_line
from .hub import check_complete, model_folder


def load_causal_lm(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A language model from a folder or hub name. Only safetensors are read."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete reports them
        )
        model = model.to(device).eval()
    except Exception as error:  # they and the device raise many exception types
        raise UserError(
            f"{name}: the model could not be loaded ({one_line(error)}): "
            "check the name or path, the access to it, and --device"
        )
    check_complete(name, info)
    return model


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: the model's and the tokenizer's, as in vLLM.

    They may differ: Qwen's base models name <|endoftext|>, their tokenizer <|im_end|>.
    """
    ids = model.generation_config.eos_token_id  # one, several or None
    if not isinstance(ids, list):
        ids = [ids]
    return sorted({*ids, tokenizer.eos_token_id} - {None})


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    max_new_tokens: list[int],
    uniforms: torch.Tensor,
    ends: list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    on_finished: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """New token ids of R responses, prompt by prompt, with the end token where they came to one.

    max_new_tokens: for the responses to each prompt.
    uniforms: (R, T) numbers in [0, 1) that decide which tokens are drawn. So a response does not
        depend on the other rows of its batch, but for rounding.
    ends: ids of the tokens that end a response.
    on_finished: called at every step with the number of responses that have just ended.
    """
    P, T = len(prompts), max(max_new_tokens)
    R = len(uniforms)
    N = R // P
    device = uniforms.device

    # The prompts, once each.
    ids, mask = pad_left(prompts, device)  # (P, L), (P, L)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )

    # From here on one row per response.
    cache = output.past_key_values
    cache.batch_repeat_interleave(N)
    logits = output.logits[:, -1].repeat_interleave(N, dim=0)  # (R, V)
    mask = mask.repeat_interleave(N, dim=0)  # (R, L)
    limit = torch.tensor(max_new_tokens, device=device).repeat_interleave(N)  # (R,)
    end_ids = torch.tensor(ends, device=device, dtype=torch.long)
    new_tokens = torch.full((R, T), -1, device=device)  # (R, T) -1 after the end
    active = torch.arange(R, device=device)  # (A,) rows that are not finished yet

    for step in range(T):
        token = draw(logits, uniforms[active, step], temperature, top_p)  # (A,)
        new_tokens[active, step] = token

        # Finished responses leave the batch.
        unfinished = ~torch.isin(token, end_ids) & (step + 1 < limit[active])  # (A,)
        keep = unfinished.nonzero()[:, 0]
        on_finished(len(active) - len(keep))
        if len(keep) == 0:
            break
        if len(keep) < len(active):
            active = active[keep]
            token = token[keep]
            mask = mask[keep]
            cache.batch_select_indices(keep)

        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)  # (A, L + step + 1)
        output = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]  # (A, V)
    return [[token for token in row if token >= 0] for row in new_tokens.tolist()]


def pad_left(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (P, L) with zeros before the shorter rows, and their mask (P, L): 1 on a token."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """(A, V) logits and (A,) numbers in [0, 1) -> (A,) tokens, by inverting the running sum.

    Probabilities .5 .2 .3 have the running sum .5 .7 1: the number 0.4 draws token 0, 0.6 draws
    token 1, 0.8 draws token 2.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    probability = torch.softmax(logits.float() / temperature, dim=1)  # (A, V)
    if top_p < 1:
        # Likeliest first; kept are the tokens whose interval of the running sum begins below top_p.
        probability, tokens = probability.sort(dim=1, descending=True, stable=True)
        begins = probability.cumsum(1) - probability
        probability = probability * (begins < top_p)
    # In float64: in float32 the rare tokens of a large vocabulary would vanish.
    running_sum = probability.cumsum(1, dtype=torch.float64)  # (A, V)
    threshold = uniforms[:, None] * running_sum[:, -1:]  # (A, 1)
    position = torch.searchsorted(running_sum, threshold, right=True)  # (A, 1)
    position = position.clamp(max=logits.shape[1] - 1)
    if top_p < 1:
        position = tokens.gather(1, position)
    return position[:, 0]
