"""AlpacaFarm's instructions to the prompts that sample.py answers, in the reference's wording.

    reads   [{"instruction": "...", "input": "..."}, ...] in two files, --preference-path and --val-path, or from the hub:
            alpaca_instructions/preference.json and val.json of the data set tatsu-lab/alpaca_farm
    writes  datasets/<dataset>/rm/rm_prompts.json (all of preference: 20,001), test/test_prompts.json (the first 1,000 of val)

    python -m rmood.alpacafarm
"""

from dataclasses import dataclass
from itertools import islice

from . import BadInput, one_line
from .config import opt, parse, run_script
from .formats import read_rows
from .records import check_writable, write_json, write_run_file

TASK = "Below is an instruction that describes a task"
GOAL = ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
WITHOUT_INPUT = TASK + GOAL + "### Response:"
WITH_INPUT = TASK + ", paired with an input that provides further context" + GOAL + "### Input:\n{input}\n\n### Response:"


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names both default targets", group="data")
    preference_path: str = opt("", "instructions to train on; none: those on the hub")
    val_path: str = opt("", "instructions to test on; none: those on the hub")
    prompts_path: str = opt("{prompts}", "training prompts to write")
    test_prompts_path: str = opt("{test_prompts}", "test prompts to write")


def prompt(row, where: str) -> dict:
    """The row of a prompts file for one instruction, with its input where it has one."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or not isinstance(row.get("input") or "", str):
        raise BadInput(f"{where}: needs an 'instruction' and may have an 'input', both texts: check that these are AlpacaFarm's instructions")
    text = (WITH_INPUT if row.get("input") else WITHOUT_INPUT).format(instruction=row["instruction"], input=row.get("input"))
    return {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": text}]}


def from_hub(split: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download("tatsu-lab/alpaca_farm", f"alpaca_instructions/{split}.json", repo_type="dataset")
    except Exception as error:  # the hub raises many kinds
        raise BadInput(f"tatsu-lab/alpaca_farm: {split}.json cannot be fetched ({one_line(error)}): pass the file by --{split}-path")


def main() -> int:
    cfg = parse(Config, __doc__, prog="python -m rmood.alpacafarm")
    for split, source, target, most in (("preference", cfg.preference_path, cfg.prompts_path, None), ("val", cfg.val_path, cfg.test_prompts_path, 1000)):
        check_writable(target)
        source = source or from_hub(split)
        prompts = [prompt(row, where) for where, row in islice(read_rows(source), most)]
        write_json(target, prompts)
        write_run_file(target, cfg, {"instructions": source})
        print(f"{target}: {len(prompts):,} prompts from {source}")
    print(f"next: python sample.py --dataset {cfg.dataset}")
    return 0


if __name__ == "__main__":
    run_script(main)
