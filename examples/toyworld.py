"""Build a toy world in which the whole pipeline runs on a laptop: prompts, an SFT model and a gold
reward model.

Reads nothing. Writes, under RMOOD_HOME (N is --dataset):
    datasets/N/rm/rm_prompts.json       training prompts for sample.py
    datasets/N/test/test_prompts.json   test prompts for sample.py; no question is in both files
    datasets/N/gold/                    preference pairs by the rule, on which gold is trained
    models/N-sft                        a tokenizer and a small Qwen3, for sample.py and train.py
    models/N-gold-base                  that Qwen3 with one more layer
    models/N-gold                       gold, trained from it by train.py, for label.py

    python examples/toyworld.py --dataset toy --seed 0

The text and the rule come from toygrammar.py. The SFT model learns from answers of every quality,
so its samples differ; gold, larger, learns the rule from preferences; the proxy of the pipeline
then has to learn gold.
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import tokenizers
import torch
import torch.nn.functional as F
from toygrammar import Task, draw_new_tasks, draw_tasks, ideal_answer, noisy_answer, rule, twins
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rmood.cli import opt, parse
from rmood.errors import run_script
from rmood.files.paths import dataset_paths
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import Conversation, read_responses
from rmood.progress import progress_bar
from rmood.schedule import learning_rate, warmup_steps

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
ASSISTANT = f"{START}assistant\n"
CHAT_TEMPLATE = (  # ChatML, like Qwen's without a <think> block
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("toy", "name of the dataset: names the folders that are written")
    seed: int = opt(0, "seed for the text, the weights and the sampling")
    train_prompts: int = opt(4000, "prompts whose sampled responses train the proxy", at_least=1)
    test_prompts: int = opt(500, "prompts held out for evaluation", at_least=1)
    sft_conversations: int = opt(18000, "conversations that the SFT model learns from", at_least=64)
    sft_lr: float = opt(3e-3, "peak learning rate of the SFT model", above=0)
    twin_pairs: int = opt(3500, "gold: pairs of a right answer and a wrong one that are otherwise alike", at_least=1)
    noisy_pairs: int = opt(3800, "gold: pairs of two noisy answers", at_least=1)
    sampled_prompts: int = opt(1200, "gold: prompts with four responses of the SFT model each, paired in a ring", at_least=1)
    gold_lr: float = opt(1.5e-3, "peak learning rate of gold", above=0)
    gold_epochs: int = opt(2, "training epochs of gold", at_least=1)
    # fmt: on


def main() -> None:
    config = parse(Config, __doc__)
    paths = dataset_paths(config.dataset)
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)

    # prompts
    questions: set[str] = set()
    test = draw_new_tasks(config.test_prompts, rng, questions)
    train = draw_new_tasks(config.train_prompts, rng, questions)
    sampled = draw_new_tasks(config.sampled_prompts, rng, questions)
    held_out = {task.question for task in test}  # seen by no model before evaluation
    write_prompts(paths["prompts"], train)
    write_prompts(paths["test_prompts"], test)
    say(f"{len(train):,} train and {len(test):,} test prompts, such as {train[0].question!r}")

    # the SFT model
    tasks = draw_tasks(config.sft_conversations, rng, held_out)
    conversations = [answered(task, any_answer(task, rng)) for task in tasks]
    tokenizer = build_tokenizer(contents(conversations))
    model = build_sft_model(tokenizer)
    train_sft(model, tokenizer, conversations, config)
    save(model, tokenizer, paths["sft"])

    # gold
    gold_data = Path(paths["data"], "gold")
    shutil.rmtree(
        gold_data, ignore_errors=True
    )  # sample.py would resume an unfinished earlier world
    base = f"{paths['gold']}-base"
    save(with_another_layer(model), tokenizer, base)
    pairs_path = str(gold_data / "rule_pairs.jsonl")
    write_jsonl(pairs_path, rule_pairs(sampled, config, gold_data, rng, held_out))
    train_gold(config, base, pairs_path, paths["gold"])


def say(*words) -> None:
    print("toyworld:", *words, file=sys.stderr, flush=True)


def run(script: str, **settings) -> None:
    """Run one of the repository's own scripts; exit where it fails, as it has said why.

    settings: batch_size=32 stands for --batch-size 32; overwrite=True for --overwrite.
    """
    flags = []
    for name, value in settings.items():
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    say("running", script, *flags)
    status = subprocess.run([sys.executable, str(REPOSITORY / script), *flags]).returncode
    if status:
        sys.exit(status)


# ---- conversations ----


def prompt(task: Task) -> Conversation:
    return [{"role": "system", "content": ""}, {"role": "user", "content": task.question}]


def answered(task: Task, answer: str) -> Conversation:
    return [*prompt(task), {"role": "assistant", "content": answer}]


def contents(conversations: Iterable[Conversation]) -> list[str]:
    return [message["content"] for messages in conversations for message in messages]


def write_prompts(path: str, tasks: list[Task]) -> None:
    write_json(path, [{"messages": prompt(task)} for task in tasks])


# ---- the SFT model ----


def any_answer(task: Task, rng: random.Random) -> str:
    """An ideal answer in a third of the cases, otherwise one of any quality.

    So the samples of a model that learns them differ.
    """
    if rng.random() < 0.35:
        return ideal_answer(task, rng)
    return noisy_answer(task, rng, noise=rng.random())


def build_tokenizer(texts: list[str], vocabulary: int = 1280) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML template.

    Of at most 1,280 tokens: as few different words as these need about 1,100.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, START, END],
        show_progress=False,
    )
    roles = ["system", "user", "assistant"] * 1000  # so often that each becomes one token
    bpe.train_from_iterator([*texts, *roles], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_sft_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,  # the usual 0.02 suits models ten times wider
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train_sft(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[Conversation],
    config: Config,
    batch_size: int = 16,
) -> None:
    """One epoch of next-token prediction, on the responses and the <|im_end|> after each."""
    rows, prompt_lengths = tokenize(conversations, tokenizer)
    batches = batches_of_similar_length(rows, batch_size)
    random.Random(config.seed).shuffle(batches)
    mean_length = sum(map(len, rows)) / len(rows)
    say(
        f"SFT model: {model.num_parameters():,} parameters, vocabulary {len(tokenizer):,}; "
        f"{len(rows):,} conversations of {mean_length:.0f} tokens, {len(batches)} steps"
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.sft_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    warmup = warmup_steps(len(batches), 0.05)
    bar = progress_bar(batches, desc="SFT", unit="step")
    for step, batch in enumerate(bar, 1):
        # Padding on the right, where a causal model does not see it: no attention mask.
        longest = max(len(rows[i]) for i in batch)
        padded = [rows[i] + [tokenizer.pad_token_id] * (longest - len(rows[i])) for i in batch]
        in_response = [
            [prompt_lengths[i] <= position < len(rows[i]) for position in range(1, longest)]
            for i in batch
        ]
        tokens = torch.tensor(padded, device=device)  # (B, T)
        learned = torch.tensor(in_response, device=device)  # (B, T-1)

        # forward, loss, backward
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, D)
        loss = F.cross_entropy(model.lm_head(hidden[learned]), tokens[:, 1:][learned])
        loss.backward()

        # clip, rate, step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        floor = 0.05 * config.sft_lr
        rate = learning_rate(step, len(batches), warmup, config.sft_lr, floor=floor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.cpu().eval()


def tokenize(
    conversations: list[Conversation], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[list[int]], list[int]]:
    """Token ids of each conversation, and how many of them are the prompt's."""
    prompts, responses = [], []
    for messages in conversations:
        text = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        begin = text.rindex(ASSISTANT) + len(ASSISTANT)
        prompts.append(text[:begin])
        responses.append(text[begin:])
    prompt_ids = tokenizer(prompts)["input_ids"]
    response_ids = tokenizer(responses)["input_ids"]
    rows = [before + after for before, after in zip(prompt_ids, response_ids)]
    return rows, [len(ids) for ids in prompt_ids]


def batches_of_similar_length(rows: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the rows in batches, sorted by length within each 32 batches: little padding."""
    order = []
    for first in range(0, len(rows), 32 * batch_size):
        chunk = range(first, min(first + 32 * batch_size, len(rows)))
        order += sorted(chunk, key=lambda i: len(rows[i]))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say(f"wrote {folder}")


# ---- gold ----


def with_another_layer(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The same function with one more layer on top, which begins by adding 0 to its input."""
    layers = model.config.num_hidden_layers + 1
    settings = model.config.to_dict() | {"num_hidden_layers": layers, "layer_types": None}
    larger = Qwen3ForCausalLM(Qwen3Config.from_dict(settings))
    larger.load_state_dict(model.state_dict(), strict=False)
    new = larger.model.layers[-1]
    torch.nn.init.zeros_(new.self_attn.o_proj.weight)
    torch.nn.init.zeros_(new.mlp.down_proj.weight)
    larger.generation_config = model.generation_config
    return larger


def rule_pairs(
    sampled: list[Task], config: Config, gold_data: Path, rng: random.Random, held_out: set[str]
) -> list[dict]:
    """Pairs of three kinds, chosen by the rule: twins, noisy answers and sampled responses.

    Two answers that the rule puts less than 1.5 points apart make no pair.
    """
    candidates = []  # (task, answer, answer)
    for task in draw_tasks(config.twin_pairs, rng, held_out):
        candidates.append((task, *twins(task, rng, noise=rng.random())))
    for task in draw_tasks(config.noisy_pairs, rng, held_out):
        one = noisy_answer(task, rng, noise=rng.random())
        other = noisy_answer(task, rng, noise=rng.random())
        candidates.append((task, one, other))
    for task, responses in zip(sampled, sample(sampled, config, gold_data)):
        following = responses[1:] + responses[:1]  # in a ring
        for one, other in zip(responses, following):
            candidates.append((task, one, other))
    rng.shuffle(candidates)

    pairs = []
    for task, one, other in candidates:
        scored = sorted([(rule(task, one), one), (rule(task, other), other)])
        (low, rejected), (high, chosen) = scored
        if high - low >= 1.5:
            pairs.append(
                {
                    "chosen": answered(task, chosen),
                    "rejected": answered(task, rejected),
                    "chosen_reward": high,
                    "rejected_reward": low,
                }
            )
    say(
        f"kept {len(pairs):,} of {len(candidates):,} pairs for gold; "
        f"dropped {len(candidates) - len(pairs):,}: less than 1.5 points apart by the rule"
    )
    return pairs


def sample(tasks: list[Task], config: Config, gold_data: Path) -> list[list[str]]:
    """Four responses of the SFT model to each task, by sample.py."""
    prompts_path = str(gold_data / "prompts.json")
    responses_path = str(gold_data / "sft.json")
    write_prompts(prompts_path, tasks)
    run(
        "sample.py",
        dataset=config.dataset,
        prompts_path=prompts_path,
        target_path=responses_path,
        num_responses=4,
        max_tokens=56,
        seed=config.seed,
    )
    return read_responses(responses_path)


def train_gold(config: Config, base: str, pairs_path: str, folder: str) -> None:
    say("training gold; its first epochs warn of a high loss, as most of the rule is learned later")
    run(
        "train.py",
        dataset=config.dataset,
        model_name=base,
        data_path=pairs_path,
        output_dir=folder,
        overwrite=True,
        lr=config.gold_lr,
        epochs=config.gold_epochs,
        batch_size=32,
        seed=config.seed,
    )


if __name__ == "__main__":
    run_script(main)
