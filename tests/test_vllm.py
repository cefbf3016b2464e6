"""With vLLM itself, in its environment: bash scripts/test_vllm.sh. Each engine takes some ten seconds to start."""

import copy
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from conftest import REPOSITORY, make_model, make_pairs, make_prompt
from test_sample import ask  # noqa: F401  a fixture
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import label
import sample
import train
from rmood import records
from rmood.tokenization import render

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: bash scripts/test_vllm.sh", allow_module_level=True)
ALONE = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}  # of processes that only vLLM runs in
os.environ |= {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_CONFIGURE_LOGGING": "0"}  # a fork would inherit the threads of other tests
import vllm
from vllm import LLM

HEADS = dict(head_dim=32)  # vLLM has no CPU attention for heads of 8


# ---- sample.py -------------------------------------------------------------------------------------------------

ENDS = [2, *range(20, 300, 16)]  # the model's own, beside the tokenizer's <|im_end|>: 1 token in 20 or so ends a response


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory, toy_tokenizer) -> str:
    folder, model = str(tmp_path_factory.mktemp("vllm-sft")), make_model("qwen3", **HEADS)
    model.generation_config.eos_token_id = ENDS[1:]
    model.save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine():
    """vllm.LLM, made once and used by every run of sample.py; a list that it is put into."""
    made = []

    def one_llm(**settings):
        if not made:
            made.append(LLM(**settings | dict(max_model_len=256, enforce_eager=True)))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LLM", one_llm)
        yield made
    made[0].llm_engine.engine_core.shutdown()


@pytest.fixture
def drawn(engine, monkeypatch):
    """drawn("vllm"): run sample.py and see the token ids: [(prompt, response), ...] in no order; and its run file."""

    def drawn(ask, backend: str, prompts: int, *flags, model: str):
        seen = []
        with monkeypatch.context() as patch:
            if backend == "vllm":
                ask(1, *flags, model=model, backend=backend, target="warm.json")  # the engine is there now
                chat = engine[0].chat

                def seeing_chat(*words, **more):
                    outputs = chat(*words, **more)
                    seen.extend((output.prompt_token_ids, list(response.token_ids)) for output in outputs for response in output.outputs)
                    return outputs

                patch.setattr(engine[0], "chat", seeing_chat)
            else:
                generate = sample.generate

                def seeing_generate(model, tokens, room, luck, *more):
                    rows = generate(model, tokens, room, luck, *more)
                    seen.extend((tokens[i // (len(rows) // len(tokens))], row) for i, row in enumerate(rows))
                    return rows

                patch.setattr(sample, "generate", seeing_generate)
            _, run = ask(prompts, *flags, model=model, backend=backend, target=f"{backend}-{len(flags)}.json")
        return seen, run

    return drawn


def surprise(model, pairs: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    """How far the responses are from what the model says at temperature 1, in standard deviations of its own.

    At every position the model knows the mean of log p(token), which is minus its entropy, and the variance. What is drawn
    differs from the mean by noise whose variances add up, whatever was drawn before: so z is N(0, 1), for any model.
    """
    width = max(len(prompt) + len(new) for prompt, new in pairs)
    ids = torch.tensor([prompt + new + [0] * (width - len(prompt) - len(new)) for prompt, new in pairs])  # (R, L)
    with torch.no_grad():
        logp = model(ids).logits.double().log_softmax(2)  # (R, L, V)
    above, variance, lengths = 0.0, 0.0, torch.tensor([len(new) for _, new in pairs], dtype=torch.double)
    for row, (prompt, new) in zip(logp, pairs):
        here = row[len(prompt) - 1 : len(prompt) + len(new) - 1]  # (T, V)
        mean = (here.exp() * here).sum(1)  # (T,)
        above += (here.gather(1, torch.tensor(new)[:, None])[:, 0] - mean).sum().item()
        variance += ((here.exp() * here**2).sum(1) - mean**2).sum().item()
    return dict(length=lengths.mean().item(), error=lengths.std().item() / math.sqrt(len(pairs)), above=above / lengths.sum().item(), z=above / math.sqrt(variance))


def end_where_they_should(pairs, ends: list[int], room: int) -> bool:
    return all((new[-1] in ends or len(new) == room) and not set(new[:-1]) & set(ends) for _, new in pairs)


def test_both_backends_draw_from_the_same_distribution(ask, drawn, sft_folder, toy_tokenizer, capsys):  # noqa: F811
    """The model's own at temperature 1: 512 responses within 5 standard deviations of it (chance: all but 6 in 10 million)."""
    flags = ["--num-responses", 8, "--max-tokens", 48]
    model, found = AutoModelForCausalLM.from_pretrained(sft_folder).eval(), {}
    texts = [toy_tokenizer.apply_chat_template(make_prompt(i), tokenize=False, add_generation_prompt=True) for i in range(64)]
    expected = sorted(toy_tokenizer(texts, add_special_tokens=False)["input_ids"] * 8)
    for backend in ("vllm", "transformers"):
        pairs, run = drawn(ask, backend, 64, *flags, model=sft_folder)
        assert sorted(prompt for prompt, _ in pairs) == expected  # the same template
        assert end_where_they_should(pairs, ENDS, 48)
        assert not end_where_they_should(pairs, ENDS[:8], 48) and not end_where_they_should(pairs, ENDS + [21, 37, 53, 69], 48)  # it would be noticed
        assert run["finish_reasons"]["stop"] == sum(row[-1] in ENDS for _, row in pairs) > 100
        found[backend] = surprise(model, pairs)
        cooler, _ = drawn(ask, backend, 64, *flags, "--temperature", 0.8, model=sft_folder)
        found[f"{backend}, temperature 0.8"] = surprise(model, cooler)
        found[f"{backend}, other template"] = surprise(model, [(prompt[:-2], new) for prompt, new in pairs])  # as if made without 'assistant'
    with capsys.disabled():
        print("\n\nresponses of sample.py         mean length  log p of a token above minus entropy       z")
        for name, n in found.items():
            print(f"{name:30}{n['length']:8.2f} +- {n['error']:.2f}{n['above']:31.4f}{n['z']:8.1f}")
    for name, n in found.items():
        assert abs(n["z"]) > 10 if "," in name else abs(n["z"]) < 5, name
    one, two = found["vllm"], found["transformers"]
    assert abs(one["length"] - two["length"]) < 5 * math.hypot(one["error"], two["error"])


def test_greedy_responses_are_those_of_transformers(ask, engine, sft_folder):  # noqa: F811
    greedy = ["--temperature", 0, "--num-responses", 1, "--max-tokens", 12]
    by_vllm, run = ask(12, *greedy, model=sft_folder, backend="vllm", target="greedy.json")
    by_transformers, run_of_transformers = ask(12, *greedy, model=sft_folder, target="greedy-hf.json")
    whole_characters = [[row["response_1"].rstrip("\ufffd") for row in rows] for rows in (by_vllm, by_transformers)]  # vLLM keeps half ones back
    assert whole_characters[0] == whole_characters[1] and run["finish"] == run_of_transformers["finish"]


def test_a_resumed_run_ends_with_the_same_file(ask, engine, sft_folder, tmp_path):  # noqa: F811
    flags = dict(model=sft_folder, backend="vllm")
    whole, run = ask(12, "--batch-size", 5, **flags)
    assert all(row["response_1"] != row["response_2"] for row in whole) and run["backend"] == "vllm"
    journal = tmp_path / "resumed.json.journal-0"
    lines = [json.dumps(run["work"])] + [json.dumps([row, {"responses": list(whole[row].values()), "finish": run["finish"][row].split()}]) for row in (3, 7)]
    journal.write_text("\n".join(lines) + "\n")
    assert ask(12, "--batch-size", 5, **flags, target="resumed.json")[0] == whole
    assert ask(12, "--batch-size", 5, **flags, target="again.json")[0] == whole


def test_sampling_in_its_own_process_writes_nothing_else_to_stdout(sft_folder, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps([{"messages": make_prompt(i)} for i in range(4)]))
    paths = ["--prompts-path", tmp_path / "prompts.json", "--target-path", tmp_path / "sft.json", "--model-name", sft_folder]
    command = [sys.executable, REPOSITORY / "sample.py", *paths, "--max-tokens", "8", "--enforce-eager"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ALONE)
    assert result.returncode == 0, result.stderr
    assert "backend: vllm" in result.stderr and result.stdout.count("\n") == 1 and "4 prompts x 2 responses" in result.stdout
    assert (tmp_path / "sft.json.run.json").exists()


# ---- a trained reward model, served ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def proxy(request, tmp_path_factory, toy_tokenizer):
    """A reward model trained by train.py, its conversations and their rewards by label.py in float32 and bf16.

    The Llama's tokenizer puts a BOS before every text, and its template writes one as well, as Llama 3's do.
    """
    folder, tokenizer = tmp_path_factory.mktemp(request.param), copy.deepcopy(toy_tokenizer)
    if request.param == "llama":
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)])
    make_model(request.param, tied=request.param == "qwen3", **HEADS).save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    paths = {name: str(folder / f"{name}.json") for name in ("prompts", "responses", "target")}
    records.write_jsonl(str(folder / "pairs.jsonl"), make_pairs(48))
    prompts, responses = [make_prompt(i) for i in range(24)], [[f"cat {i} " * (1 + i % 9), "dog one two", f"the {i}"] for i in range(24)]
    records.write_json(paths["prompts"], [{"messages": prompt} for prompt in prompts])
    records.write_json(paths["responses"], [{f"response_{k}": text for k, text in enumerate(row, 1)} for row in responses])

    def run(script, *flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script.__name__}.py", "--device", "cpu", *map(str, flags)])
            assert script.main() == 0

    run(train, "--model-name", folder / "sft", "--data-path", folder / "pairs.jsonl", "--output-dir", folder / "rm", "--lr", 3e-3, "--batch-size", 8)
    rewards = {}
    for dtype in ("float32", "bf16"):
        run(label, "--model-name", folder / "rm", "--dtype", dtype, *(word for name, path in paths.items() for word in (f"--{name}-path", path)))
        rewards[dtype] = torch.tensor(records.read_rewards(paths["target"])).flatten()
    talks = [[*prompt, {"role": "assistant", "content": text}] for prompt, row in zip(prompts, responses) for text in row]
    return request.param, str(folder / "rm"), talks, rewards


PARITY = []  # rows of the table, printed when the last is known


def test_plain_classify_gives_the_rewards_of_label_py(proxy, capsys):
    kind, folder, talks, rewards = proxy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [render(talk, tokenizer) for talk in talks]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    noise = (rewards["bf16"] - rewards["float32"]).abs().max().item()  # what bf16 makes of these rewards
    for dtype in ("float32", "bf16"):
        name = {"bf16": "bfloat16"}.get(dtype, dtype)
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=name).eval()
        with torch.no_grad():
            by_transformers = theirs(**tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")).logits[:, 0].float()
        llm = LLM(folder, runner="pooling", dtype=name, max_model_len=256, gpu_memory_utilization=0.2, enforce_eager=True)
        score = lambda prompts: torch.tensor([output.outputs.probs[0] for output in llm.classify(prompts, use_tqdm=False)])  # noqa: E731
        by_vllm = score([{"prompt_token_ids": row} for row in ids])
        from_text = score(texts)
        llm.llm_engine.engine_core.shutdown()
        off, off_transformers = ((other - rewards[dtype]).abs().max().item() for other in (by_vllm, by_transformers))
        PARITY.append([kind, dtype, len(texts), rewards[dtype].std().item(), off, off_transformers, 0.0 if dtype == "float32" else noise])
        allowed = 1e-4 if dtype == "float32" else 2 * noise
        assert off < allowed and rewards["float32"].std() > 10 * noise
        if kind == "qwen3":
            assert (from_text - by_vllm).abs().max() < allowed  # this tokenizer adds nothing to a rendered text
        elif dtype == "float32":
            assert (from_text - by_vllm).abs().max() > 0.01  # this one adds a second BOS: docs/serving.md says to pass ids
    if len(PARITY) == 4:
        with capsys.disabled():
            print("\n\nlargest distance to label.py's rewards\nmodel  dtype    texts  reward std    vLLM classify  transformers  what bf16 changes")
            for kind, dtype, count, std, vllm, hf, bf16 in PARITY:
                print(f"{kind:7}{dtype:8}{count:6}{std:12.3f}{vllm:17.1e}{hf:14.1e}{bf16:19.1e}")


@pytest.mark.parametrize("proxy", ["llama"], indirect=True)
def test_the_server_answers_with_the_rewards_of_label_py(proxy):
    """As docs/serving.md shows it: the messages go in, the server renders them, with one BOS."""
    _, folder, talks, rewards = proxy
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--runner", "pooling", "--dtype", "float32", "--port", str(port)]
    command += ["--max-model-len", "256", "--gpu-memory-utilization", "0.2", "--enforce-eager", "--served-model-name", "proxy"]
    server = subprocess.Popen(command, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def classify(messages: list[dict]) -> float:
        body = json.dumps({"model": "proxy", "messages": messages}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/classify", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["data"][0]["probs"][0]

    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "the server stopped"
                time.sleep(0.2)
        assert [classify(talk) for talk in talks[:12]] == pytest.approx(rewards["float32"][:12].tolist(), abs=1e-4)
    finally:
        server.terminate()
        server.wait(timeout=60)
