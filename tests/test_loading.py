"""Loading: this file is also the script that torchrun runs on two processes."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY, groups_of_pairs, make_model
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from rmood import distributed
from rmood.batching import pack
from rmood.errors import UserError
from rmood.loading import (
    allocate,
    check_token_ids,
    fill,
    fill_rows,
    load_reward_model,
    meta_reward_model,
    new_head,
    weights_fingerprint,
)
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.optim import local
from rmood.sharding import shard

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_position_embeddings=512,
)
LARGE = dict(hidden_size=512, num_hidden_layers=8, intermediate_size=2048, vocab_size=1000)


def save_mixture(folder: Path) -> None:
    """A mixture of experts: three matrices an expert in the file, two stacks of them in memory."""
    settings = dict(vocab_size=384, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config = AutoConfig.for_model("qwen3_moe", **SHAPE, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def save_with_images(folder: Path) -> None:
    """Gemma 3 with images: its file has other names than the model in memory."""
    vision = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = Gemma3Config(
        text_config=SHAPE | {"vocab_size": 384},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """One folder for each way in which weights are stored."""
    here = tmp_path_factory.mktemp("stored")
    make_model("qwen3", vocab_size=383).save_pretrained(here / "tied")  # an odd number of rows
    untied = make_model("llama", tied=False)
    untied.save_pretrained(here / "untied")
    untied.save_pretrained(here / "several-files", max_shard_size="40KB")
    untied.to(torch.bfloat16).save_pretrained(here / "bf16")
    config = make_model("qwen3").config
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(here / "classifier")
    make_model("qwen3", **LARGE).to(torch.bfloat16).save_pretrained(here / "large")
    save_mixture(here / "mixture")
    save_with_images(here / "with-images")
    save_mixture(here / "incomplete-mixture")
    weights = load_file(here / "incomplete-mixture/model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, here / "incomplete-mixture/model.safetensors", metadata={"format": "pt"})
    return here


STORED = ["tied", "untied", "several-files", "bf16", "classifier", "mixture", "with-images"]


def of_transformers(folder: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Parameters and buffers as from_pretrained loads them, by RewardModel's names."""
    backbone = AutoModel.from_pretrained(folder, dtype=dtype)
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {f"backbone.{name}": tensor.detach() for name, tensor in tensors}


def whole_tensors(model) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a model that may be sharded. Every rank calls it."""
    tensors = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor = tensor.detach()
        tensors[name] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensors


def spoil(model) -> None:
    """NaN in all memory that was allocated: what is not filled will be seen."""
    for parameter in model.parameters():
        local(parameter).detach().fill_(math.nan)


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit, in dtype and values."""
    assert found.keys() == expected.keys() | {"score.weight"}
    return [
        name
        for name, tensor in expected.items()
        if tensor.dtype != found[name].dtype or not torch.equal(tensor, found[name])
    ]


# ---- on two processes, by torchrun -------------------------------------------------------------


def run_as_script(folders: str) -> None:
    """What each rank sees, to stdout as JSON: [rank] -> numbers."""
    process = distributed.start("cpu")
    found = {"memory": memory_of_loading(f"{folders}/large", process)}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        for stored in STORED:
            model = load_sharded(f"{folders}/{stored}", process, precision, dtype)
            expected = of_transformers(f"{folders}/{stored}", dtype)
            found[f"{stored} {precision}"] = differing(whole_tensors(model), expected)
            found[f"{stored} {precision} head"] = model.score.weight.full_tensor().tolist()
    offloaded = load_sharded(f"{folders}/tied", process, "float32", torch.float32, cpu_offload=True)
    expected = of_transformers(f"{folders}/tied", torch.float32)
    found["offloaded"] = differing(whole_tensors(offloaded), expected)
    resized = load_sharded(f"{folders}/tied", process, "float32", torch.float32, embeddings=390)
    embeddings = resized.backbone.get_input_embeddings().weight.full_tensor()
    found["resized"] = embeddings.tolist()
    try:
        load_reward_model(f"{folders}/incomplete-mixture", seed=0, process=process)
    except UserError as error:
        found["incomplete"] = str(error)
    everything = [None] * process.world_size
    dist.all_gather_object(everything, found)
    process.result(json.dumps(everything))
    process.finish()


def load_sharded(folder: str, process, precision, dtype, *, embeddings=None, cpu_offload=False):
    model, source = meta_reward_model(folder, dtype, seed=0)
    if embeddings:
        model.backbone.resize_token_embeddings(embeddings, mean_resizing=False)
    model = shard(model, process, precision, cpu_offload=cpu_offload)
    spoil(model)
    fill(model, source, process)
    return model


def memory_of_loading(folder: str, process) -> dict[str, int]:
    """Bytes: own shard, largest whole tensor, all weights, private memory beyond the imports'."""
    of_transformers(str(Path(folder).parent / "tied"), torch.float32)  # imports the model's code
    before = private_memory()
    peak = before
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, private_memory())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    model, source = meta_reward_model(folder, torch.float32, seed=0)
    model = shard(model, process, "float32")
    fill(model, source, process)
    done.set()
    thread.join()
    parameters = list(model.parameters())
    return {
        "shard": sum(local(p).nbytes for p in parameters),
        "largest": max(p.numel() * p.element_size() for p in parameters),
        "all": sum(p.numel() * p.element_size() for p in parameters),
        "private": peak - before,
    }


def private_memory() -> int:
    """Bytes that only this process maps (USS): anonymous memory, and files read by it alone."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


@pytest.fixture(scope="module")
def two_processes(folders) -> tuple[list[dict], str]:
    """[rank] -> what it found; and what was printed. Collectives return before they are done, as
    NCCL's do (tests/unwaited/sitecustomize.py)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, str(folders)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RMOOD_TEST_UNWAITED": "1"}
    environment["PYTHONPATH"] = f"{REPOSITORY}/tests/unwaited:{REPOSITORY}"
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stored", STORED)
def test_two_processes_read_what_transformers_loads(stored, precision, two_processes, folders):
    ranks, _ = two_processes
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    head = load_reward_model(str(folders / stored), dtype, seed=0).score.weight.tolist()
    for rank in ranks:
        assert rank[f"{stored} {precision}"] == []
        assert rank[f"{stored} {precision} head"] == head


def test_weights_in_host_memory_are_read_by_rows_too(two_processes):
    ranks, _ = two_processes
    assert [rank["offloaded"] for rank in ranks] == [[], []]


def test_a_process_holds_its_own_shard_and_at_most_one_tensor(two_processes):
    """16 MB for the modules themselves, and what the allocator keeps."""
    ranks, _ = two_processes
    for rank in ranks:
        memory = rank["memory"]
        assert memory["shard"] == pytest.approx(memory["all"] / 2, rel=0.01)
        limit = memory["shard"] + memory["largest"] + 16e6
        assert memory["private"] < limit < 0.8 * memory["all"]


def test_embeddings_of_new_tokens_are_the_same_on_any_number_of_processes(two_processes, folders):
    ranks, _ = two_processes
    model, source = meta_reward_model(str(folders / "tied"), seed=0)
    model.backbone.resize_token_embeddings(390, mean_resizing=False)
    model = allocate(model, "cpu")
    spoil(model)
    fill(model, source)
    embeddings = model.backbone.get_input_embeddings().weight
    known = of_transformers(str(folders / "tied"), torch.float32)["backbone.embed_tokens.weight"]
    assert torch.equal(embeddings[:383], known)
    assert 0.1 < embeddings[383:].std() < 0.3  # initializer_range 0.2
    assert [rank["resized"] for rank in ranks] == [embeddings.tolist()] * 2


def test_rank_0_sends_what_is_stored_under_other_names_and_says_so(two_processes):
    _, printed = two_processes
    lines = [line for line in printed.splitlines() if "rank 0 loads all of them" in line]
    for stored in STORED:
        converted = stored in ("mixture", "with-images")
        assert sum(f"/{stored}: " in line for line in lines) == (2 if converted else 0)


def test_all_ranks_raise_what_rank_0_cannot_load(two_processes):
    ranks, _ = two_processes
    for rank in ranks:
        assert "incomplete-mixture: 1 weights are missing" in rank["incomplete"]


# ---- on one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", STORED)
def test_a_model_is_what_transformers_loads(stored, dtype, folders):
    """Also its buffers, which no file holds."""
    model, source = meta_reward_model(str(folders / stored), dtype, seed=0)
    model = allocate(model, "cpu")
    spoil(model)
    fill(model, source)
    expected = of_transformers(str(folders / stored), dtype)
    assert any("inv_freq" in name for name in expected)
    assert differing(whole_tensors(model), expected) == []
    assert model.score.weight.dtype == torch.float32
    assert not model.backbone.training


def test_nothing_is_allocated_before_it_is_sharded(folders):
    model, _ = meta_reward_model(str(folders / "large"), seed=0)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_head_in_the_file_is_read_in_its_own_precision(folders, tmp_path):
    weights = load_file(folders / "classifier/model.safetensors")
    weights["score.weight"] = torch.full((1, 32), 1 + 2**-12)  # bf16 would round it to 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders / "classifier/config.json").read_text())
    model = load_reward_model(str(tmp_path), torch.bfloat16)
    assert torch.equal(model.score.weight, weights["score.weight"])
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}


def test_rows_come_from_the_pieces_that_hold_them():
    target = torch.zeros(5, 2)
    pieces = [torch.full((2, 2), 1.0), torch.full((0, 2), 9.0), torch.full((3, 2), 2.0)]
    fill_rows(target, pieces)
    assert target[:, 0].tolist() == [1, 1, 2, 2, 2]
    with pytest.raises(AssertionError):
        fill_rows(target, pieces[:1])


def test_the_fingerprint_of_weights_is_that_of_their_content(folders, tmp_path):
    """Not of where they are; one matrix scaled by 1.001, or another shape of one, is another."""
    known = weights_fingerprint(str(folders / "untied"))
    shutil.copytree(folders / "untied", tmp_path / "moved")
    assert weights_fingerprint(str(tmp_path / "moved")) == known
    weights = load_file(folders / "untied/model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for changed in (weights[name] * 1.001, weights[name].reshape(32, 64)):
        save_file(
            weights | {name: changed},
            tmp_path / "moved/model.safetensors",
            metadata={"format": "pt"},
        )
        assert weights_fingerprint(str(tmp_path / "moved")) != known
    parts = {name: weights_fingerprint(str(folders / name)) for name in ("several-files", "bf16")}
    assert len({known, *parts.values()}) == 3


def test_a_new_head_has_no_opinion(toy_model_folder, toy_tokenizer):
    model = load_reward_model(toy_model_folder, seed=0)
    rewards, _ = model(pack(groups_of_pairs(toy_tokenizer)))
    loss = bradley_terry_loss(reward_margin(rewards.view(-1, 2))).mean().item()
    assert 0 < rewards.std() < 0.1
    assert loss == pytest.approx(math.log(2), abs=0.01)


def test_a_new_head_gives_a_normed_hidden_state_a_reward_near_0():
    """Std of the weights 1 / (D + 1), so of the reward sqrt(D) / (D + 1): 0.02 at D = 2,560."""
    head = new_head(2560, seed=0)
    assert head.std().item() == pytest.approx(1 / 2561, rel=0.05)
    hidden = torch.randn(1000, 2560, generator=torch.Generator().manual_seed(1))
    assert (hidden @ head.T).std().item() == pytest.approx(0.02, abs=0.002)
    assert torch.equal(head, new_head(2560, seed=0))
    assert not torch.equal(head, new_head(2560, seed=1))


def test_scoring_needs_a_head(toy_model_folder):
    with pytest.raises(UserError, match="no reward head"):
        load_reward_model(toy_model_folder)


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path):
    config = make_model("qwen3").config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="several labels"):
        load_reward_model(str(tmp_path))


def test_an_incomplete_folder_is_refused(tmp_path):
    model = make_model("qwen3")
    weights = {name: w for name, w in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match="3 weights are missing"):
        load_reward_model(str(tmp_path), seed=0)


def test_a_missing_model_is_a_user_error():
    with pytest.raises(UserError, match="no model could be loaded: no such folder"):
        load_reward_model("/nowhere/at-all", seed=0)


def test_a_tokenizer_of_another_model_is_noticed(toy_model_folder):
    model = load_reward_model(toy_model_folder, seed=0)
    embeddings = model.backbone.get_input_embeddings().num_embeddings
    check_token_ids(embeddings, [[1, 383], [0]], "toy")
    with pytest.raises(UserError, match="toy: token id 384 lies outside the model's 384 embedd"):
        check_token_ids(embeddings, [[1, 384], [0]], "toy")


if __name__ == "__main__":
    run_as_script(*sys.argv[1:])
