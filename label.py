"""Stage 2: score every response with a gold reward model.

reads   rm_prompts.json and rm_sft.json (sample.py) of datasets/<dataset>/rm/
writes  datasets/<dataset>/rm/rm_rewards.json for preprocess.py: [[reward_1, reward_2], ...]

    python label.py --dataset alpacafarm
    torchrun --nproc-per-node 8 label.py --dataset alpacafarm
    python label.py --shard 3/16     # on one of 16 machines
    python label.py --shard merge    # when all 16 have finished

A gold model that a server holds (vLLM, SGLang, OpenRLHF's remote reward model):

    python label.py --url http://127.0.0.1:8000 --api classify

The reward of one text, or of each line of standard input, written to standard output:

    python label.py --model-name models/toy-rm --text "Name a fruit." --response "Apple." "No."
    python label.py --model-name models/toy-rm --stdin < rows.jsonl > scored.jsonl

Any other program may write the rewards file: one row per prompt, one reward per response. Then
continue with preprocess.py.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmood import distributed
from rmood.cli import opt, parse
from rmood.distributed import Process
from rmood.errors import UserError, run_script
from rmood.files.paths import dataset_paths
from rmood.files.provenance import (
    Journal,
    allow_mismatch,
    check_lineage,
    content_hash,
    read_shards,
    shard_of,
    stands_already,
    write_run_file,
    write_shard,
)
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import (
    Conversation,
    check_messages,
    check_rows,
    join_conversations,
    local_path,
    read_prompts,
    read_responses,
)
from rmood.hub import model_commit
from rmood.loading import weights_fingerprint
from rmood.remote import APIS, RemoteScorer, connect, with_tokenizer
from rmood.scoring import DTYPES, Scorer, load_scorer, scoring_dtype
from rmood.tokenization import (
    load_tokenizer,
    say_other_template_kwargs,
    show_row,
    template_facts,
)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data and model")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    target_path: str = opt("auto", "where the rewards are written, auto: the dataset's rm_rewards.json (test_reward_gold.json for the test split), with the model's name in it where the model is not the dataset's gold")
    model_name: str = opt("{gold}", "the reward model: any sequence classifier with one label; a folder, or owner/model or owner/model@revision on the hub")
    num_responses: int = opt(0, "responses per prompt; 0: as many as the file has", at_least=0)
    overwrite: bool = opt(False, "replace a target that another model, other settings or other texts made")
    allow_mismatch: bool = opt(False, "use files that by their run files do not belong together")
    batch_size: int = opt(256, "maximum number of prompts in one forward pass (in train.py it is pairs per optimizer step)", group="scoring", at_least=1)
    tokens_per_pass: int = opt(16384, "maximum number of tokens in one forward pass; lower it when memory runs out", at_least=16)
    max_length: int = opt(2048, "maximum number of tokens of a conversation; a longer response is cut at its end, never the template's closing tokens; a server (--url) has a limit of its own", at_least=8)
    dtype: str = opt("auto", "dtype of the backbone, auto: bf16 on CUDA, float32 on a CPU; the head is always float32", choices=list(DTYPES))
    chat_template: str = opt("", "file with a chat template (Jinja), for a tokenizer that has none")
    template_kwargs: str = opt("", "JSON of variables that the chat template reads, such as '{\"enable_thinking\": false}'")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    url: str = opt("", "http://host:port of a server that gives the rewards; with a path of its own it is asked there; RMOOD_API_KEY holds its key", group="a model on a server")
    api: str = opt("classify", "how it is asked: vLLM's classify, pooling or score, OpenRLHF's remote reward model (reward), or sglang", choices=list(APIS))
    send: str = opt("auto", "messages: the server renders them; text: rendered here by the chat template of --model-name; auto: messages where the api takes them", choices=["auto", "messages", "text"])
    served_model: str = opt("", "which of the server's models; none: its only one")
    concurrency: int = opt(16, "requests on their way at once", at_least=1)
    timeout: float = opt(120.0, "seconds to wait for an answer", above=0)
    retries: int = opt(10, "how often a request that failed is tried again, after longer and longer waits", at_least=0)
    text: str = opt("", "score this user's message with each --response, and print the rewards", group="a text instead of files")
    response: list[str] = opt([], "one or more responses to --text")
    stdin: bool = opt(False, "read JSON lines from standard input, {\"messages\": [...]} or {\"prompt\": ..., \"response\": ...}, and write each with its \"reward\" to standard output")
    shard: str = opt("", "3/16: do the third of 16 shards of the work, into a file of its own; merge: put the finished shards together", group="several machines")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    allow_mismatch(cfg.allow_mismatch)
    check_settings(cfg)
    if cfg.text or cfg.stdin:
        return score_texts(cfg)

    server = connect_server(cfg) if cfg.url else None
    cfg = replace(cfg, target_path=choose_target(cfg, server))
    check_writable(cfg.target_path)
    check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    prompts = read_prompts(cfg.prompts_path)
    responses = read_matching_responses(cfg, prompts)
    if cfg.shard == "merge":
        merge_shards(cfg, len(prompts))
        return 0

    # What the rewards depend on: the journal, a finished file and other shards are held to it.
    target, share = shard_of(cfg.target_path, cfg.shard, len(prompts))
    process = distributed.start("cpu" if server else cfg.device)
    facts = facts_of_server(cfg, server) if server else facts_of_model(cfg, process)
    inputs = input_paths(cfg)
    hashes = {role: content_hash(path) for role, path in inputs.items() if path}
    work = facts["work"] | {"num_responses": max(map(len, responses))} | hashes
    if stands_already(target, work, inputs, cfg.overwrite):
        process.print(
            f"{target}: already exists, made with these settings and inputs: nothing to do"
        )
        process.finish()
        return 0

    journal = Journal(target, work, process.rank)
    process.barrier()  # all read the same journal before one adds to it: all plan the same passes
    if journal.done:
        known, total = len(journal.done), len(prompts)
        process.print(f"{target}: resuming: {known:,} of {total:,} prompts were labelled before")
    conversations = join_conversations(prompts, responses)
    scorer = server or load_scorer(
        cfg.model_name,
        process,
        cfg.dtype,
        cfg.max_length,
        cfg.tokens_per_pass,
        cfg.chat_template,
        cfg.template_kwargs,
    )
    if scorer.tokenizer:
        say_other_template_kwargs(scorer.tokenizer, cfg.template_kwargs, cfg.responses_path)
    process.print(describe_first(cfg, scorer, conversations[0][0]))
    rewards = score_share(cfg, scorer, conversations, share, journal, facts)

    if process.is_main:
        write_target(cfg, target, rewards, inputs, facts | {"work": work})
    process.barrier()
    if process.is_main:
        journal.delete(target)
    process.finish()
    return 0


# ---- before scoring ----


def check_settings(cfg: Config) -> None:
    if cfg.text and not cfg.response:
        raise UserError("label.py: --text without --response: give the responses to score, too")
    if cfg.response and not cfg.text:
        raise UserError(
            "label.py: --response without --text, or with an empty one: give the user's message"
        )
    if cfg.text and cfg.stdin:
        raise UserError("label.py: --text and --stdin: give one of them")
    needs_one_process = cfg.url or cfg.text or cfg.stdin
    if needs_one_process and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "label.py: --url, --text and --stdin work in one process: start it with plain python"
        )
    if not cfg.url and cfg.send != "auto":
        raise UserError("label.py: --send is for a server: give its address by --url")


def read_matching_responses(cfg: Config, prompts: list[Conversation]) -> list[list[str]]:
    """--num-responses responses to each prompt; raises UserError unless the files match."""
    responses = read_responses(cfg.responses_path, ragged=True)
    check_rows(
        cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py"
    )
    available = min(map(len, responses))
    if cfg.num_responses > available:
        raise UserError(
            f"{cfg.responses_path}: {available} responses per prompt, but --num-responses "
            f"{cfg.num_responses}: lower it, or sample more"
        )
    return [row[: cfg.num_responses or None] for row in responses]


def choose_target(cfg: Config, server: RemoteScorer | None) -> str:
    """--target-path; "auto" never is gold's file for the rewards of another model."""
    if cfg.target_path != "auto":
        return cfg.target_path
    paths = dataset_paths(cfg.dataset, cfg.split)
    gold = paths["gold"]
    name = server.model if server else cfg.model_name
    folder, _, revision = name.partition("@")
    if os.path.abspath(folder) == os.path.abspath(gold):
        return paths["rewards"]
    if server and name in ("", Path(gold).name):
        return paths["rewards"]
    short = Path(folder).name + (f"-{revision}" if revision else "")
    target = Path(paths["rewards"])
    return str(target.with_name(f"{target.stem.removesuffix('_gold')}_{short}{target.suffix}"))


def input_paths(cfg: Config) -> dict[str, str]:
    return {
        "prompts": local_path(cfg.prompts_path),
        "responses": cfg.responses_path,
        "chat_template": cfg.chat_template,
    }


def facts_of_model(cfg: Config, process: Process) -> dict:
    """What the run file says of the model; "work": what the rewards depend on."""
    names = ("batch_size", "tokens_per_pass", "max_length")
    work = {name: getattr(cfg, name) for name in names}
    # What auto came to: a run that is resumed on another device must not mix two dtypes.
    chosen = scoring_dtype(cfg.dtype, process.device)
    template = template_facts(
        load_tokenizer(cfg.model_name, cfg.chat_template, cfg.template_kwargs)
    )
    commit = model_commit(cfg.model_name)
    work |= {
        "model_commit": commit,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == chosen),
        "weights_fingerprint": weights_fingerprint(cfg.model_name),
        "template_sha256": template["template_sha256"],
    }
    return {"model_commit": commit, "work": work} | template


# ---- a server ----


def connect_server(cfg: Config) -> RemoteScorer:
    server = connect(
        cfg.url,
        cfg.api,
        cfg.send,
        cfg.served_model,
        cfg.timeout,
        cfg.retries,
        cfg.concurrency,
    )
    if server.send == "text":
        return with_tokenizer(
            server, load_tokenizer(cfg.model_name, cfg.chat_template, cfg.template_kwargs)
        )
    if cfg.chat_template or cfg.template_kwargs:
        raise UserError(
            "label.py: --chat-template and --template-kwargs are for texts rendered here, but "
            f"--api {cfg.api} is sent {server.send}: give them to the server, or add --send text"
        )
    return server


def facts_of_server(cfg: Config, server: RemoteScorer) -> dict:
    """facts_of_model() of a server: what it says of itself, and what it is sent."""
    work = {
        "api": server.api,
        "send": server.send,
        "served_model": server.model,
        "version": server.version,
    }
    template = template_facts(server.tokenizer) if server.tokenizer else {}
    if template:
        work["template_sha256"] = template["template_sha256"]
    return {"server": server.url, "work": work} | template


# ---- scoring ----


def describe_first(cfg: Config, scorer: Scorer | RemoteScorer, conversation: Conversation) -> str:
    """The first conversation as the model reads it, as far as that is known here."""
    if isinstance(scorer, Scorer):
        return (
            f"the first conversation, as {cfg.model_name} reads it:\n"
            f"{show_row(conversation, scorer.tokenizer, scorer.max_length)}"
        )
    says = scorer.model or "a model without a name"
    if scorer.version:
        says += f", version {scorer.version}"
    if scorer.tokenizer:
        return (
            f"{scorer.url}: {says}; sent as text, of which this is the first:\n"
            f"{show_row(conversation, scorer.tokenizer)}"
        )
    if scorer.send == "messages":
        return f"{scorer.url}: {says}; sent as messages, which the server renders"
    return (
        f"{scorer.url}: {says}; question and answer are sent as plain text, for a reranker: "
        "a reward model that reads a chat template needs --api classify or pooling"
    )


def score_share(
    cfg: Config,
    scorer: Scorer | RemoteScorer,
    conversations: list[list[Conversation]],
    share: slice,
    journal: Journal,
    facts: dict,
) -> dict[int, list[float]]:
    """Row of the prompts file -> the rewards of its responses. What Scorer.score says joins facts.

    share: of the planned passes; of the prompts, where a server scores them.
    """
    options = {"done": journal.done, "keep": journal.add, "share": share}
    if isinstance(scorer, Scorer):
        options |= {"groups_per_pass": cfg.batch_size, "facts": facts}
    scored = scorer.score(conversations, desc="labelling", **options)
    rewards = {i: row for i, row in enumerate(scored) if row is not None}
    if not rewards:
        raise UserError(
            f"--shard {cfg.shard}: no work is left for this shard: use fewer shards, "
            "or a lower --tokens-per-pass"
        )
    not_finite = [i for i, row in rewards.items() if not np.isfinite(row).all()]
    if not_finite:
        raise UserError(
            f"{cfg.model_name}: {len(not_finite)} prompts got a reward that is not finite, "
            f"the first is row {not_finite[0]}: try --dtype float32"
        )
    return rewards


# ---- a text, or standard input ----


def score_texts(cfg: Config) -> int:
    """Print the reward of each --response to --text, or of each line of standard input."""
    scorer = (
        connect_server(cfg)
        if cfg.url
        else load_scorer(
            cfg.model_name,
            distributed.start(cfg.device),
            cfg.dtype,
            cfg.max_length,
            cfg.tokens_per_pass,
            cfg.chat_template,
            cfg.template_kwargs,
        )
    )
    if cfg.stdin:
        for lines in whole_lines(sys.stdin.fileno()):
            score_lines(scorer, lines)
        return 0
    question = {"role": "user", "content": cfg.text}
    answers = [[question, {"role": "assistant", "content": text}] for text in cfg.response]
    print(describe_first(cfg, scorer, answers[0]), file=sys.stderr)
    for reward in scorer.score([answers])[0]:
        print(reward)
    return 0


def whole_lines(descriptor: int) -> Iterator[list[tuple[int, bytes]]]:
    """(number, line) of the lines that are there, as soon as there is one: a program that writes
    one line and waits for its reward gets it."""
    rest = b""
    number = 0
    while True:
        piece = os.read(descriptor, 1 << 20)
        *lines, rest = (rest + piece).split(b"\n")
        if not piece and rest:
            lines, rest = [rest], b""
        numbered = [(number + i, line) for i, line in enumerate(lines, start=1)]
        number += len(lines)
        if any(line.strip() for line in lines):
            yield [(i, line) for i, line in numbered if line.strip()]
        if not piece:
            return


def score_lines(scorer: Scorer | RemoteScorer, lines: list[tuple[int, bytes]]) -> None:
    rows = []
    conversations = []
    for number, line in lines:
        where = f"standard input: line {number}"
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise UserError(f"{where}: not JSON: write one JSON object per line")
        conversations.append([conversation_of(rows[-1], where)])
    for row, (reward,) in zip(rows, scorer.score(conversations)):
        print(json.dumps(row | {"reward": reward}, ensure_ascii=False))
    sys.stdout.flush()


def conversation_of(row, where: str) -> Conversation:
    """The conversation of {"messages": [...]}, or of {"prompt": text or messages, "response"}."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object: give messages, or prompt and response")
    messages = row.get("messages")
    if messages is None:
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or "response" not in row:
            raise UserError(f"{where}: neither 'messages' nor 'prompt' and 'response': fix the row")
        messages = [*prompt, {"role": "assistant", "content": row["response"]}]
    messages = check_messages(messages, where)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last turn must be the assistant's: it is what is scored")
    return messages


# ---- after scoring ----


def merge_shards(cfg: Config, rows: int) -> None:
    inputs = input_paths(cfg)
    overwrite = cfg.overwrite
    cfg, facts, rewards = read_shards(
        cfg, rows, prompts=cfg.prompts_path, responses=cfg.responses_path
    )
    if stands_already(cfg.target_path, facts["work"], inputs, overwrite):
        print(f"{cfg.target_path}: already exists, made of these shards: nothing to do")
        return
    write_target(cfg, cfg.target_path, dict(enumerate(rewards)), inputs, facts)


def write_target(
    cfg: Config, target: str, rewards: dict[int, list[float]], inputs: dict[str, str], facts: dict
) -> None:
    """Write the rewards of all rows, or of a shard's, with their run file; print a summary."""
    is_shard = target != cfg.target_path
    if is_shard:
        write_shard(target, rewards)
    else:
        write_json(target, list(rewards.values()))
    ties = sum(len(set(row)) < len(row) for row in rewards.values())
    write_run_file(target, cfg, inputs, **facts | {"rows_with_ties": ties})

    widths = {len(row) for row in rewards.values()}
    width = f"{min(widths)}" if len(widths) == 1 else f"{min(widths)} to {max(widths)}"
    values = np.concatenate([np.array(row) for row in rewards.values()])
    print(
        f"{len(rewards):,} x {width} rewards: mean {values.mean():.2f}, "
        f"std {values.std():.2f}, {values.min():.2f} to {values.max():.2f}; "
        f"{ties:,} rows with a tie ({ties / len(rewards):.1%})"
    )
    if is_shard:
        next_step = "once all shards are there: python label.py --shard merge"
    elif target == dataset_paths(cfg.dataset, cfg.split)["rewards"]:
        next_step = f"python preprocess.py --dataset {cfg.dataset} --split {cfg.split}"
    else:
        next_step = f"preprocess.py or evaluate.py match, with --rewards-path {target}"
    print(f"{target}: written; next: {next_step}")


if __name__ == "__main__":
    run_script(main)
