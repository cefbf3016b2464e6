"""Build a toy world in which the whole pipeline runs on a laptop: prompts, an SFT model and a gold reward model.

Reads nothing. Writes, under RMOOD_HOME (N is --dataset):
    datasets/N/rm/rm_prompts.json, datasets/N/test/test_prompts.json    prompts for sample.py; no question is in both
    datasets/N/gold/                    rule-made preference pairs, what gold is trained on
    models/N-sft                        a tokenizer and a small Qwen3, for sample.py and train.py
    models/N-gold-base, models/N-gold   that Qwen3 with one more layer, and gold trained from it by train.py: for label.py

    python examples/toyworld.py --dataset toy --seed 0

The text and the rule come from toygrammar.py. The SFT model learns from answers of every quality, so its samples differ;
gold, larger, learns the rule from preferences; the proxy of the pipeline then has to learn gold.
"""

import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import tokenizers
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rmood.config import layout, opt, parse, run_script
from rmood.records import read_responses, write_json, write_jsonl
from rmood.schedule import learning_rate, warmup_steps
from toygrammar import Task, draw_new_tasks, draw_tasks, ideal_answer, noisy_answer, rule, twins

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Config:
    dataset: str = opt("toy", "name of the dataset: where everything lies")
    seed: int = opt(0, "seed of the text, the weights and the sampling")
    train_prompts: int = opt(4000, "prompts whose sampled responses train the proxy", at_least=1)
    test_prompts: int = opt(500, "prompts held out for evaluation", at_least=1)
    sft_conversations: int = opt(18000, "conversations the SFT model learns from", at_least=64)
    sft_lr: float = opt(3e-3, "peak learning rate of the SFT model", above=0)
    twin_pairs: int = opt(3500, "gold: pairs of a right answer and a wrong one that are alike in all else", at_least=1)
    noisy_pairs: int = opt(3800, "gold: pairs of two noisy answers", at_least=1)
    sampled_prompts: int = opt(1200, "gold: prompts with four responses of the SFT model each, paired in a ring", at_least=1)
    gold_lr: float = opt(1.5e-3, "peak learning rate of gold", above=0)
    gold_epochs: int = opt(2, "passes of gold over its pairs", at_least=1)


def main() -> None:
    config = parse(Config, __doc__)
    paths, rng = layout(config.dataset), random.Random(config.seed)
    torch.manual_seed(config.seed)

    questions: set[str] = set()
    test, train, gold = (draw_new_tasks(number, rng, questions) for number in (config.test_prompts, config.train_prompts, config.sampled_prompts))
    held_out = {task.question for task in test}  # seen by no model before evaluation
    write_prompts(paths["prompts"], train)
    write_prompts(paths["test_prompts"], test)
    say(f"{len(train):,} train and {len(test):,} test prompts, such as {train[0].question!r}")

    conversations = [answered(task, any_answer(task, rng)) for task in draw_tasks(config.sft_conversations, rng, held_out)]
    tokenizer = build_tokenizer(message["content"] for messages in conversations for message in messages)
    model = build_sft_model(tokenizer)
    train_sft(model, tokenizer, conversations, config)
    save(model, tokenizer, paths["sft"])

    shutil.rmtree(f"{paths['data']}/gold", ignore_errors=True)  # an unfinished earlier world would be gone on with
    base, pairs = f"{paths['gold']}-base", f"{paths['data']}/gold/rule_pairs.jsonl"
    save(with_another_layer(model), tokenizer, base)
    write_jsonl(pairs, rule_pairs(gold, config, paths, rng, held_out))
    say("training gold; its first epochs earn the warnings they get: most of the rule is learned after them")
    script("train.py", "--dataset", config.dataset, "--model-name", base, "--data-path", pairs, "--output-dir", paths["gold"], "--overwrite",
           "--lr", config.gold_lr, "--epochs", config.gold_epochs, "--batch-size", 32, "--log-every", 10, "--seed", config.seed)  # fmt: skip


def say(*words) -> None:
    print("toyworld:", *words, file=sys.stderr, flush=True)


def script(name: str, *arguments) -> None:
    """Run one of the repository's own scripts; where it fails it has said why."""
    command = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
    say("running", " ".join([name, *command[2:]]))
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def prompt(task: Task) -> list[dict]:
    return [{"role": "system", "content": ""}, {"role": "user", "content": task.question}]


def write_prompts(path: str, tasks: list[Task]) -> None:
    write_json(path, [{"messages": prompt(task)} for task in tasks])


def answered(task: Task, answer: str) -> list[dict]:
    return [*prompt(task), {"role": "assistant", "content": answer}]


# ---- the SFT model -----------------------------------------------------------------------------------------------


def any_answer(task: Task, rng: random.Random) -> str:
    """A third of the answers are ideal, the rest of every quality: the samples of the model that learns them differ."""
    return ideal_answer(task, rng) if rng.random() < 0.35 else noisy_answer(task, rng, noise=rng.random())


def build_tokenizer(texts, vocabulary: int = 1280) -> PreTrainedTokenizerFast:
    """Byte-level BPE of up to 1,280 tokens (so few words need about 1,100) and a ChatML template like Qwen's, without a
    <think> block."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=[PAD, START, END], show_progress=False)
    bpe.train_from_iterator([*texts, *["system", "user", "assistant"] * 1000], trainer)  # the template's own words: one token each
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END, extra_special_tokens=[START], model_max_length=512)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_sft_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=384,
        max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.06,  # 0.06: 0.02 suits models ten times wider
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None))  # fmt: skip
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def train_sft(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict]], config: Config, batch_size: int = 16) -> None:
    """One epoch of next-token prediction, on the tokens of the responses and the <|im_end|> behind them."""
    texts = [tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n") for messages in conversations]
    begins = [text.rindex(f"{START}assistant\n") + len(f"{START}assistant\n") for text in texts]  # where the response begins
    prompts = tokenizer([text[:begin] for text, begin in zip(texts, begins)])["input_ids"]
    rows = [ids + more for ids, more in zip(prompts, tokenizer([text[begin:] for text, begin in zip(texts, begins)])["input_ids"])]
    # Batches of like length (sorted within each 32 batches) in random order: little padding.
    chunks = [range(at, min(at + 32 * batch_size, len(rows))) for at in range(0, len(rows), 32 * batch_size)]
    order = [i for chunk in chunks for i in sorted(chunk, key=lambda i: len(rows[i]))]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    random.Random(config.seed).shuffle(batches)
    say(f"SFT model: {model.num_parameters():,} parameters, vocabulary {len(tokenizer):,}; {len(rows):,} conversations of {sum(map(len, rows)) / len(rows):.0f} tokens, {len(batches)} steps")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.sft_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    bar, warmup = tqdm(batches, desc="SFT", unit="step"), warmup_steps(len(batches), 0.05)
    for step, batch in enumerate(bar, 1):
        length = max(len(rows[i]) for i in batch)
        # Padding stands on the right, where a causal model does not see it: no attention mask.
        tokens = torch.tensor([rows[i] + [tokenizer.pad_token_id] * (length - len(rows[i])) for i in batch], device=device)  # (B, T)
        learned = torch.tensor([[len(prompts[i]) <= at < len(rows[i]) for at in range(1, length)] for i in batch], device=device)  # (B, T-1)
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, D)
        loss = F.cross_entropy(model.lm_head(hidden[learned]), tokens[:, 1:][learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(batches), warmup, config.sft_lr, floor=0.05 * config.sft_lr)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.cpu().eval()


def with_another_layer(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The same function with one more layer on top: what the new layer adds to the residual stream starts at zero."""
    config = Qwen3Config.from_dict(model.config.to_dict() | {"num_hidden_layers": model.config.num_hidden_layers + 1, "layer_types": None})
    larger = Qwen3ForCausalLM(config)
    larger.load_state_dict(model.state_dict(), strict=False)
    new = larger.model.layers[-1]
    torch.nn.init.zeros_(new.self_attn.o_proj.weight)
    torch.nn.init.zeros_(new.mlp.down_proj.weight)
    larger.generation_config = model.generation_config
    return larger


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say(f"wrote {folder}")


# ---- gold's preferences ------------------------------------------------------------------------------------------


def rule_pairs(sampled: list[Task], config: Config, paths: dict[str, str], rng: random.Random, held_out: set[str]) -> list[dict]:
    """Pairs of three kinds, chosen by the rule; where it puts the two less than 1.5 points apart there is no pair."""
    candidates = [(task, *twins(task, rng, noise=rng.random())) for task in draw_tasks(config.twin_pairs, rng, held_out)]
    candidates += [(task, *(noisy_answer(task, rng, noise=rng.random()) for _ in "ab")) for task in draw_tasks(config.noisy_pairs, rng, held_out)]
    for task, responses in zip(sampled, sample(sampled, config, paths)):
        candidates += [(task, *pair) for pair in zip(responses, responses[1:] + responses[:1])]
    rng.shuffle(candidates)
    pairs = []
    for task, *answers in candidates:
        (low, rejected), (high, chosen) = sorted((rule(task, answer), answer) for answer in answers)
        if high - low >= 1.5:
            pairs.append({"chosen": answered(task, chosen), "rejected": answered(task, rejected), "chosen_reward": high, "rejected_reward": low})
    say(f"kept {len(pairs):,} of {len(candidates):,} pairs for gold; dropped {len(candidates) - len(pairs):,}: less than 1.5 points apart by the rule")
    return pairs


def sample(tasks: list[Task], config: Config, paths: dict[str, str]) -> list[list[str]]:
    """Four responses of the SFT model to each task, by sample.py."""
    prompts, responses = f"{paths['data']}/gold/prompts.json", f"{paths['data']}/gold/sft.json"
    write_prompts(prompts, tasks)
    script("sample.py", "--dataset", config.dataset, "--prompts-path", prompts, "--target-path", responses, "--num-responses", 4, "--max-tokens", 56, "--seed", config.seed)
    return read_responses(responses)


if __name__ == "__main__":
    run_script(main)
