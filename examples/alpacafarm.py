"""AlpacaFarm's instructions to the prompts that sample.py answers, in the reference's wording.

reads   [{"instruction": "...", "input": "..."}, ...] in --preference-path and --val-path,
        or alpaca_instructions/preference.json and val.json of tatsu-lab/alpaca_farm on the hub
writes  datasets/<dataset>/rm/rm_prompts.json       all of preference: 20,001
        datasets/<dataset>/test/test_prompts.json   the first 1,000 of val

    python examples/alpacafarm.py
"""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rmood.cli import opt, parse
from rmood.errors import UserError, one_line, run_script
from rmood.files.provenance import write_run_file
from rmood.files.rows import check_writable, read_rows, write_json
from rmood.files.tables import Message

WITHOUT_INPUT = """\
Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:"""

WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:"""

TEST_PROMPTS = 1000


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data")
    preference_path: str = opt("", "instructions to train on; none: those on the hub")
    val_path: str = opt("", "instructions to test on; none: those on the hub")
    prompts_path: str = opt("{prompts}", "training prompts to write")
    test_prompts_path: str = opt("{test_prompts}", "test prompts to write")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__, prog="python examples/alpacafarm.py")
    convert(cfg, cfg.preference_path or from_hub("preference"), cfg.prompts_path)
    convert(cfg, cfg.val_path or from_hub("val"), cfg.test_prompts_path, most=TEST_PROMPTS)
    print(f"next: python sample.py --dataset {cfg.dataset}")
    return 0


def convert(cfg: Config, source: str, target: str, most: int | None = None) -> None:
    """Write a prompts file from a file of instructions, from the first `most` of them."""
    check_writable(target)
    rows = islice(read_rows(source), most)
    prompts = [{"messages": make_prompt(row, where)} for where, row in rows]
    write_json(target, prompts)
    write_run_file(target, cfg, {"instructions": source})
    print(f"{target}: {len(prompts):,} prompts from {source}")


def make_prompt(row, where: str) -> list[Message]:
    """The messages for one instruction, with its input where it has one."""
    if not is_instruction(row):
        raise UserError(
            f"{where}: needs an 'instruction' and may have an 'input', both texts: "
            "check that these are AlpacaFarm's instructions"
        )
    wording = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    text = wording.format(instruction=row["instruction"], input=row.get("input"))
    return [{"role": "system", "content": ""}, {"role": "user", "content": text}]


def is_instruction(row) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return False
    return isinstance(row.get("input") or "", str)


def from_hub(split: str) -> str:
    """The path of a split's instructions, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(
            "tatsu-lab/alpaca_farm", f"alpaca_instructions/{split}.json", repo_type="dataset"
        )
    except Exception as error:  # the hub's client raises many exception types
        raise UserError(
            f"tatsu-lab/alpaca_farm: {split}.json cannot be fetched ({one_line(error)}): "
            f"pass the file by --{split}-path"
        )


if __name__ == "__main__":
    run_script(main)
