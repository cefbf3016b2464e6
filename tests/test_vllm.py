"""With vLLM itself, in its own environment: bash scripts/test_vllm.sh.

Each engine takes some ten seconds to start.
"""

import copy
import importlib.util
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_model, make_pairs, make_prompt
from real_model import smollm2  # noqa: F401  a fixture
from test_sample import run_sample  # noqa: F401  a fixture
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import label
import sample
import train
from rmood import remote
from rmood.errors import UserError
from rmood.files.provenance import read_run_file
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_rewards
from rmood.tokenization import render

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: bash scripts/test_vllm.sh", allow_module_level=True)
OWN_PROCESS = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}  # of processes that only vLLM runs in
os.environ |= {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit the threads of other tests
    "VLLM_CONFIGURE_LOGGING": "0",
}
import vllm
from vllm import LLM

HEADS = {"head_dim": 32}  # vLLM has no CPU attention for heads of 8


# ---- sample.py ----

# End tokens of the model, beside the tokenizer's <|im_end|>: about 1 token in 20 ends a response.
MODEL_ENDS = list(range(20, 300, 16))
ENDS = [2, *MODEL_ENDS]


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory, toy_tokenizer) -> str:
    folder = str(tmp_path_factory.mktemp("vllm-sft"))
    model = make_model("qwen3", **HEADS)
    model.generation_config.eos_token_id = MODEL_ENDS
    model.save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine():
    """vllm.LLM, made once and used by every run of sample.py; a list that it is put into."""
    made = []

    def one_llm(**settings):
        if not made:
            made.append(LLM(**settings | {"max_model_len": 256, "enforce_eager": True}))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LLM", one_llm)
        yield made
    made[0].llm_engine.engine_core.shutdown()


@pytest.fixture
def drawn(run_sample, engine, monkeypatch):  # noqa: F811
    """drawn("vllm", 64, ...): run sample.py and see the token ids: [(prompt, response), ...] in no
    order; and its run file."""

    def drawn(backend: str, prompts: int, *flags, model: str):
        pairs = []
        settings = {"model": model, "backend": backend}
        flags = [*flags, "--overwrite"]
        with monkeypatch.context() as patch:
            if backend == "vllm":
                run_sample(1, *flags, **settings, target="warm.json")  # the engine is there now
                chat = engine[0].chat

                def seeing_chat(*args, **options):
                    outputs = chat(*args, **options)
                    for output in outputs:
                        for response in output.outputs:
                            pairs.append((output.prompt_token_ids, list(response.token_ids)))
                    return outputs

                patch.setattr(engine[0], "chat", seeing_chat)
            else:
                generate = sample.generate

                def seeing_generate(model, prompt_ids, *args):
                    rows = generate(model, prompt_ids, *args)
                    responses = len(rows) // len(prompt_ids)
                    for i, row in enumerate(rows):
                        pairs.append((prompt_ids[i // responses], row))
                    return rows

                patch.setattr(sample, "generate", seeing_generate)
            target = f"{backend}-{len(flags)}.json"
            _, run = run_sample(prompts, *flags, **settings, target=target)
        return pairs, run

    return drawn


@dataclass
class Surprise:
    """How far responses are from what the model says at temperature 1."""

    length: float  # mean, in tokens
    length_error: float  # its standard error
    above: float  # mean over tokens of log p(token) + entropy; 0 is expected
    z: float  # the sum of that in its own standard deviations


def surprise(model, pairs: list[tuple[list[int], list[int]]]) -> Surprise:
    """At every position the model knows the mean of log p(token), which is minus its entropy, and
    the variance. What is drawn differs from the mean by noise whose variances add up, whatever was
    drawn before: so z is N(0, 1), for any model.
    """
    width = max(len(prompt) + len(new) for prompt, new in pairs)
    padded = [prompt + new + [0] * (width - len(prompt) - len(new)) for prompt, new in pairs]
    with torch.no_grad():
        logp = model(torch.tensor(padded)).logits.double().log_softmax(2)  # (R, L, V)
    above = 0.0
    variance = 0.0
    for row, (prompt, new) in zip(logp, pairs):
        first = len(prompt) - 1
        here = row[first : first + len(new)]  # (T, V)
        p = here.exp()
        mean = (p * here).sum(1)  # (T,)
        of_drawn = here.gather(1, torch.tensor(new)[:, None])[:, 0]  # (T,)
        above += (of_drawn - mean).sum().item()
        variance += ((p * here**2).sum(1) - mean**2).sum().item()
    lengths = torch.tensor([len(new) for _, new in pairs], dtype=torch.double)
    return Surprise(
        length=lengths.mean().item(),
        length_error=lengths.std().item() / math.sqrt(len(pairs)),
        above=above / lengths.sum().item(),
        z=above / math.sqrt(variance),
    )


def end_where_they_should(pairs, ends: list[int], max_tokens: int) -> bool:
    for _, new in pairs:
        if new[-1] not in ends and len(new) != max_tokens:
            return False
        if set(new[:-1]) & set(ends):
            return False
    return True


def test_both_backends_draw_from_the_same_distribution(drawn, sft_folder, toy_tokenizer, capsys):
    """The model's own at temperature 1: 512 responses within 5 standard deviations of it (chance:
    all but 6 in 10 million). At another temperature or after another prompt it would be noticed."""
    flags = ["--num-responses", 8, "--max-tokens", 48]
    model = AutoModelForCausalLM.from_pretrained(sft_folder).eval()
    texts = [
        toy_tokenizer.apply_chat_template(
            make_prompt(i), tokenize=False, add_generation_prompt=True
        )
        for i in range(64)
    ]
    expected = sorted(toy_tokenizer(texts, add_special_tokens=False)["input_ids"] * 8)
    right: dict[str, Surprise] = {}
    wrong: dict[str, Surprise] = {}
    for backend in ("vllm", "transformers"):
        pairs, run = drawn(backend, 64, *flags, model=sft_folder)
        assert sorted(prompt for prompt, _ in pairs) == expected  # the same template
        assert end_where_they_should(pairs, ENDS, 48)
        assert not end_where_they_should(pairs, ENDS[:8], 48)  # it would be noticed
        assert not end_where_they_should(pairs, [*ENDS, 21, 37, 53, 69], 48)
        stopped = sum(row[-1] in ENDS for _, row in pairs)
        assert run["finish_reasons"]["stop"] == stopped
        assert stopped > 100
        right[backend] = surprise(model, pairs)
        cooler, _ = drawn(backend, 64, *flags, "--temperature", 0.8, model=sft_folder)
        wrong[f"{backend}, temperature 0.8"] = surprise(model, cooler)
        without_assistant = [(prompt[:-2], new) for prompt, new in pairs]
        wrong[f"{backend}, other template"] = surprise(model, without_assistant)
    with capsys.disabled():
        print("\n\nresponses of sample.py         mean length", end="")
        print("  log p of a token above minus entropy       z")
        for name, it in (right | wrong).items():
            print(f"{name:30}{it.length:8.2f} +- {it.length_error:.2f}{it.above:31.4f}{it.z:8.1f}")
    for name, it in right.items():
        assert abs(it.z) < 5, name
    for name, it in wrong.items():
        assert abs(it.z) > 10, name
    one, other = right["vllm"], right["transformers"]
    error = math.hypot(one.length_error, other.length_error)
    assert abs(one.length - other.length) < 5 * error


def test_greedy_responses_are_those_of_transformers(run_sample, engine, sft_folder):  # noqa: F811
    greedy = ["--temperature", 0, "--num-responses", 1, "--max-tokens", 12]
    texts, finish = {}, {}
    for backend in ("vllm", "transformers"):
        rows, run = run_sample(
            12, *greedy, model=sft_folder, backend=backend, target=f"greedy-{backend}.json"
        )
        # vLLM keeps half characters back.
        texts[backend] = [row["response_1"].rstrip("\ufffd") for row in rows]
        finish[backend] = run["finish"]
    assert texts["vllm"] == texts["transformers"]
    assert finish["vllm"] == finish["transformers"]


def test_a_resumed_run_writes_the_same_file(run_sample, engine, sft_folder, tmp_path):  # noqa: F811
    def run(target: str):
        return run_sample(12, "--batch-size", 5, model=sft_folder, backend="vllm", target=target)

    whole, facts = run("sft.json")
    assert all(row["response_1"] != row["response_2"] for row in whole)
    assert facts["backend"] == "vllm"
    lines = [facts["work"]]
    for row in (3, 7):
        finish = facts["finish"][row].split()
        lines.append([row, {"responses": list(whole[row].values()), "finish": finish}])
    journal = tmp_path / "resumed.json.journal-0"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("resumed.json")[0] == whole
    assert run("again.json")[0] == whole


def test_sampling_in_its_own_process_writes_nothing_else_to_stdout(sft_folder, tmp_path):
    prompts = tmp_path / "prompts.json"
    target = tmp_path / "sft.json"
    prompts.write_text(json.dumps([{"messages": make_prompt(i)} for i in range(4)]))
    command = [sys.executable, str(REPOSITORY / "sample.py"), "--model-name", sft_folder]
    command += ["--prompts-path", str(prompts), "--target-path", str(target)]
    command += ["--max-tokens", "8", "--enforce-eager"]
    result = subprocess.run(command, capture_output=True, text=True, env=OWN_PROCESS)
    assert result.returncode == 0, result.stderr
    assert "backend: vllm" in result.stderr
    assert result.stdout.count("\n") == 1
    assert "4 prompts x 2 responses" in result.stdout
    assert (tmp_path / "sft.json.run.json").exists()


# ---- a trained reward model, served ----


@dataclass
class Proxy:
    kind: str
    folder: str
    conversations: list
    rewards: dict[str, torch.Tensor]  # by dtype, of label.py


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def proxy(request, tmp_path_factory, toy_tokenizer) -> Proxy:
    """A reward model trained by train.py, and conversations with rewards by label.py.

    The Llama's tokenizer puts a BOS before every text, and its template writes one as well, as
    Llama 3's do.
    """
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = copy.deepcopy(toy_tokenizer)
    if kind == "llama":
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
        )
    make_model(kind, tied=kind == "qwen3", **HEADS).save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    write_jsonl(str(folder / "pairs.jsonl"), make_pairs(48))
    prompts = [make_prompt(i) for i in range(24)]
    responses = [[f"cat {i} " * (1 + i % 9), "dog one two", f"the {i}"] for i in range(24)]
    write_json(str(folder / "prompts.json"), [{"messages": prompt} for prompt in prompts])
    write_json(
        str(folder / "responses.json"),
        [{f"response_{k}": text for k, text in enumerate(row, 1)} for row in responses],
    )

    def run(script, **settings):
        argv = [f"{script.__name__}.py", "--device", "cpu"]
        for name, value in settings.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            assert script.main() == 0

    run(
        train,
        model_name=folder / "sft",
        data_path=folder / "pairs.jsonl",
        output_dir=folder / "rm",
        lr=3e-3,
        batch_size=8,
    )
    rewards = {}
    for dtype in ("float32", "bf16"):
        run(
            label,
            model_name=folder / "rm",
            dtype=dtype,
            prompts_path=folder / "prompts.json",
            responses_path=folder / "responses.json",
            target_path=folder / f"rewards-{dtype}.json",
        )
        rewards[dtype] = torch.tensor(read_rewards(str(folder / f"rewards-{dtype}.json"))).flatten()
    conversations = []
    for prompt, row in zip(prompts, responses):
        for text in row:
            conversations.append([*prompt, {"role": "assistant", "content": text}])
    return Proxy(kind, str(folder / "rm"), conversations, rewards)


PARITY = []  # rows of the table, printed when the last is known


def test_plain_classify_gives_the_rewards_of_label_py(proxy, capsys):
    tokenizer = AutoTokenizer.from_pretrained(proxy.folder)
    texts = [render(conversation, tokenizer) for conversation in proxy.conversations]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    float32, bf16 = proxy.rewards["float32"], proxy.rewards["bf16"]
    noise = (bf16 - float32).abs().max().item()  # what bf16 changes in these rewards
    assert float32.std() > 10 * noise
    for dtype, torch_name in (("float32", "float32"), ("bf16", "bfloat16")):
        rewards = proxy.rewards[dtype]
        allowed = 1e-4 if dtype == "float32" else 2 * noise
        by_transformers = rewards_by_transformers(proxy.folder, torch_name, tokenizer, texts)
        by_vllm, from_text = rewards_by_vllm(
            proxy.folder, torch_name, [{"prompt_token_ids": row} for row in ids], texts
        )
        distance = (by_vllm - rewards).abs().max().item()
        assert distance < allowed
        # docs/serving.md says to pass ids: from text this Llama's tokenizer adds a second BOS.
        from_text_distance = (from_text - by_vllm).abs().max()
        if proxy.kind == "qwen3":
            assert from_text_distance < allowed
        elif dtype == "float32":
            assert from_text_distance > 0.01
        PARITY.append(
            f"{proxy.kind:7}{dtype:8}{len(texts):6}{rewards.std().item():12.3f}{distance:17.1e}"
            f"{(by_transformers - rewards).abs().max().item():14.1e}"
            f"{0.0 if dtype == 'float32' else noise:19.1e}"
        )
    if len(PARITY) == 4:
        with capsys.disabled():
            print("\n\nlargest distance to label.py's rewards")
            print("model  dtype    texts  reward std    vLLM classify  transformers", end="")
            print("  what bf16 changes")
            print("\n".join(PARITY))


def rewards_by_transformers(folder: str, dtype: str, tokenizer, texts: list[str]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits[:, 0].float()


def rewards_by_vllm(folder: str, dtype: str, *prompt_lists: list) -> list[torch.Tensor]:
    """Rewards of each list of prompts, by one engine."""
    llm = LLM(
        folder,
        runner="pooling",
        dtype=dtype,
        max_model_len=256,
        gpu_memory_utilization=0.2,
        enforce_eager=True,
    )
    found = []
    for prompts in prompt_lists:
        outputs = llm.classify(prompts, use_tqdm=False)
        found.append(torch.tensor([output.outputs.probs[0] for output in outputs]))
    llm.llm_engine.engine_core.shutdown()
    return found


@pytest.mark.parametrize("proxy", ["llama"], indirect=True)
def test_the_server_answers_with_the_rewards_of_label_py(proxy, tmp_path):
    """As docs/serving.md shows it: the messages go in, the server renders them, with one BOS."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "model": proxy.folder,
        "runner": "pooling",
        "dtype": "float32",
        "port": port,
        "max-model-len": 256,
        "gpu-memory-utilization": 0.2,
        "served-model-name": "proxy",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    server = subprocess.Popen(
        command, env=OWN_PROCESS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def classify(messages: list[dict]) -> float:
        body = json.dumps({"model": "proxy", "messages": messages}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/classify", body, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["data"][0]["probs"][0]

    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        rewards = [classify(conversation) for conversation in proxy.conversations[:12]]
        assert rewards == pytest.approx(proxy.rewards["float32"][:12].tolist(), abs=1e-4)
        check_labelling_by_server(proxy, f"http://127.0.0.1:{port}", tmp_path)
    finally:
        server.terminate()
        server.wait(timeout=60)


def check_labelling_by_server(proxy: Proxy, url: str, folder: Path) -> None:
    """label.py --url: each form that takes whole conversations gives label.py's own rewards."""
    data = Path(proxy.folder).parent
    for api, send in itertools.product(("classify", "pooling"), ("messages", "text")):
        target = str(folder / f"{api}-{send}.json")
        argv = ["label.py", "--url", url, "--api", api, "--send", send, "--target-path", target]
        argv += ["--prompts-path", str(data / "prompts.json"), "--model-name", proxy.folder]
        argv += ["--responses-path", str(data / "responses.json")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            assert label.main() == 0
        found = torch.tensor(read_rewards(target)).flatten()
        assert (found - proxy.rewards["float32"]).abs().max() < 1e-4, (api, send)
        work = read_run_file(target)["work"]
        assert (work["served_model"], work["version"]) == ("proxy", vllm.__version__)
    # A reward model is no reranker: its two texts are joined in another way. The form is the same.
    scores = remote.connect(url, "score").score([[proxy.conversations[0], proxy.conversations[1]]])
    assert len(scores[0]) == 2
    with pytest.raises(UserError, match="prompt 0, response 1: .*HTTP 400"):
        long = [{"role": "user", "content": "Q" * 9000}, {"role": "assistant", "content": "A"}]
        remote.connect(url).score([[long]])


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url)
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "the server stopped"
            time.sleep(0.2)


# ---- a real model ----

TASKS = [
    "Name the capital of France.",
    "Write one sentence about the sea.",
    "What is 2 + 3?",
    "Give me a synonym of happy.",
    "Translate 'good morning' into Spanish.",
]
QUESTIONS = [
    f"{task} {more}" for task in TASKS for more in ("", "Be brief.", "Why?", "Explain it.")
]


def test_smollm2_answers_by_vllm_as_by_transformers(smollm2, tmp_path, capsys):  # noqa: F811
    """20 prompts, 24 tokens each, greedily, in float32: two texts may part where two tokens are
    equally likely but for rounding."""
    prompts = tmp_path / "prompts.json"
    messages = [[{"role": "user", "content": question.strip()}] for question in QUESTIONS]
    write_json(str(prompts), [{"messages": prompt} for prompt in messages])
    flags = ["--temperature", "0", "--num-responses", "1", "--max-tokens", "24"]
    flags += ["--dtype", "float32", "--enforce-eager", "--prompts-path", str(prompts)]
    texts = {}
    for backend in ("vllm", "transformers"):
        target = tmp_path / f"{backend}.json"
        command = [sys.executable, str(REPOSITORY / "sample.py"), "--model-name", smollm2, *flags]
        command += ["--backend", backend, "--target-path", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env=OWN_PROCESS)
        assert done.returncode == 0, done.stderr[-4000:]
        texts[backend] = [row["response_1"] for row in json.loads(target.read_text())]
    same = sum(a == b for a, b in zip(texts["vllm"], texts["transformers"]))
    with capsys.disabled():
        print(f"\n\nSmolLM2, 20 greedy responses: {same} the same; {texts['vllm'][0]!r}")
    assert "Paris" in texts["vllm"][0]
    assert same >= 18


def test_vllm_scores_a_trained_smollm2_as_label_py_does(smollm2, tmp_path, capsys):  # noqa: F811
    """One step of training: all weights have moved, and the head is not the random one."""
    prompts = [[{"role": "user", "content": question.strip()}] for question in QUESTIONS]
    responses = [["Paris.", f"I would say {i}, " * (1 + i % 5)] for i in range(len(prompts))]
    pairs = []
    for prompt, texts in zip(prompts[:8], responses):
        chosen, rejected = ([*prompt, {"role": "assistant", "content": text}] for text in texts)
        pairs.append({"chosen": chosen, "rejected": rejected})
    write_jsonl(str(tmp_path / "pairs.jsonl"), pairs)
    write_json(str(tmp_path / "prompts.json"), [{"messages": prompt} for prompt in prompts])
    rows = [{"response_1": first, "response_2": second} for first, second in responses]
    write_json(str(tmp_path / "responses.json"), rows)
    common = ["--device", "cpu", "--model-name"]
    commands = [
        [train, *common, smollm2, "--data-path", tmp_path / "pairs.jsonl"]
        + ["--output-dir", tmp_path / "rm", "--lr", "1e-4", "--epochs", "1", "--batch-size", "8"],
        [label, *common, tmp_path / "rm", "--prompts-path", tmp_path / "prompts.json"]
        + ["--responses-path", tmp_path / "responses.json", "--dtype", "float32"]
        + ["--target-path", tmp_path / "rewards.json"],
    ]
    for script, *flags in commands:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
            assert script.main() == 0
    rewards = torch.tensor(read_rewards(str(tmp_path / "rewards.json"))).flatten()

    folder = str(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt, row in zip(prompts, responses):
        for text in row:
            texts.append(render([*prompt, {"role": "assistant", "content": text}], tokenizer))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    (by_vllm,) = rewards_by_vllm(folder, "float32", [{"prompt_token_ids": row} for row in ids])
    distance = (by_vllm - rewards).abs().max().item()
    with capsys.disabled():
        print(f"\n\nSmolLM2 trained, {len(texts)} conversations: reward std {rewards.std():.3f}")
        print(f"largest distance of vLLM's rewards to label.py's, float32: {distance:.1e}")
    assert distance < 1e-3 * rewards.std()
