"""train.py --rate-probe: the loss of several rates from one start, on the same pairs.

Each rate begins with the start's weights and empty moments, and takes the same steps of train.py's
first epoch: its rate is constant after a short warmup. The steps are those of train.py's main (a
test holds their losses to its own); only what a step's pairs lost before their update is kept.

    R rates, S steps, n pairs in these steps
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .batching import LAYOUTS, epoch_order, plan_step
from .diagnosis.rates import Tried, advice, figure, judged, table
from .diagnosis.scale import loss_at
from .distributed import Process
from .evaluation import score_pairs
from .files.rows import atomic_file, write_json
from .loss import pair_losses
from .optim import clip_gradients, fill_moments, local, trained_parameters
from .pairset import EMPTY_PASS, PairSet, StepValues
from .progress import progress_bar


def probe_rates(
    model, optimizer, data: PairSet, process: Process, cfg, rates: list[float], steps: int
) -> list[Tried]:
    """Every rate tried, with its verdict; afterwards the weights are the start's again.

    model: sharded, in training mode. optimizer: with its moments made (optim.fill_moments).
    cfg: train.py's settings. rates: rising. steps: at most those of an epoch, so that no pair is
    seen twice. Every rank calls it.
    """
    restore = Start(model, optimizer)
    order = epoch_order(len(data.groups), cfg.batch_size, cfg.seed, 0)[:steps]
    numbers = [data.pairs_of(groups) for groups in order]
    step_of = np.repeat(np.arange(1, len(order) + 1), [len(pairs) for pairs in numbers])
    prompt = data.prompts[np.concatenate(numbers)]  # (n,)
    groups = data.subset(np.concatenate(order).tolist())
    rewards = score_pairs(model, groups, process, cfg.tokens_per_pass, "scoring the start")
    start = loss_at(1.0, (rewards[:, 0] - rewards[:, 1]).astype(np.float64))

    losses = []
    total = len(rates) * len(order)
    with progress_bar(
        total=total, desc="rate probe", unit="step", disable=not process.is_main
    ) as bar:
        for rate in rates:
            bar.set_postfix(rate=f"{rate:.2g}", refresh=False)
            losses.append(try_rate(model, optimizer, data, process, cfg, rate, order, bar))
            restore()
    return judged(rates, start, np.array(losses), step_of, prompt)


class Start:
    """The weights of the start, in host memory, and what is random in the optimizer.

    Called, it puts them back and empties the moments.
    """

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.weights = {}
        for name, p in trained_parameters(model).items():
            self.weights[name] = local(p).detach().to("cpu", copy=True)
        self.random = None
        if hasattr(optimizer, "generator"):
            self.random = optimizer.generator.get_state()

    @torch.no_grad()
    def __call__(self) -> None:
        for name, p in trained_parameters(self.model).items():
            local(p).copy_(self.weights[name])
        fill_moments(self.model, self.optimizer)
        if self.random is not None:
            self.optimizer.generator.set_state(self.random)


def warmup_share(step: int, steps: int) -> float:
    """Of the rate: it rises over the first tenth of the steps."""
    return min(1.0, step / max(1, steps // 10))


def try_rate(
    model, optimizer, data: PairSet, process: Process, cfg, rate: float, order: list, bar
) -> np.ndarray:
    """(n,) plain losses of the pairs of these steps before their update; infinite from the first
    step on that is not finite."""
    tokens = [group.tokens for group in data.groups]
    center = 0.0  # mean reward of the step before, for --centring
    found = []
    for step, groups_of_step in enumerate(order, start=1):
        plan = plan_step(groups_of_step, tokens, cfg.tokens_per_pass, process.world_size)
        passes = plan[process.rank]
        values = StepValues(groups_of_step, data, center)
        for i, groups in enumerate(passes):
            model.set_requires_all_reduce(i == len(passes) - 1)
            batch = LAYOUTS[cfg.layout]([data.groups[group] for group in groups] or EMPTY_PASS)
            rewards, pooled = model(batch.to(process.device))
            if groups:
                step_rows, pass_rows = values.rows_of(groups)
                both = rewards[pass_rows]  # (b, 2)
                gold = data.gold_of(values.pairs[step_rows])
                losses = pair_losses(both, gold, center, cfg)
                loss = (losses * values.weights[step_rows]).sum()
                values.put(step_rows, both, losses, pooled[pass_rows])
            else:
                loss = rewards.sum() * 0.0
            (loss * process.world_size).backward()
        process.sum(values.table)
        norms = clip_gradients(model, cfg.max_grad_norm, process, cfg.replicas)
        is_finite = values.are_finite(norms)
        if is_finite:
            chosen, rejected = values.rewards.double().unbind(dim=1)
            found.append(F.softplus(rejected - chosen).cpu().numpy())
            if cfg.centring:
                center = values.rewards.mean().item()
            for param_group in optimizer.param_groups:
                param_group["lr"] = rate * warmup_share(step, len(order))
            optimizer.step()
        optimizer.zero_grad()
        bar.update()
        if not is_finite:
            bar.update(len(order) - step)
            break
    rest = sum(len(data.pairs_of(groups)) for groups in order[len(found) :])
    return np.concatenate([*found, np.full(rest, math.inf)])


def write_report(folder: str, tried: list[Tried], cfg, planned_sum: float) -> tuple[str, str]:
    """Write the numbers and the figure into a trained model's folder, beside earlier reports.

    Returns what to print, and the path of the figure. planned_sum: the planned run's rates, added
    up over its steps.
    """
    steps = len(tried[0].by_step)
    probe_steps = sum(warmup_share(step, steps) for step in range(1, steps + 1))
    lines = advice(tried, cfg.lr, planned_sum, probe_steps)
    title = f"{Path(folder).name}: {steps} steps of {cfg.batch_size} at each rate"
    Path(folder).mkdir(parents=True, exist_ok=True)
    number = 1
    while Path(folder, f"rate-probe-{number}.json").exists():
        number += 1
    path = str(Path(folder, f"rate-probe-{number}"))
    numbers = {
        "steps": steps,
        "batch_size": cfg.batch_size,
        "planned_lr": cfg.lr,
        "planned_rate_x_steps": planned_sum,
        "rates": [one.as_json() for one in tried],
        "advice": lines,
    }
    with atomic_file(f"{path}.svg") as file:
        file.write(figure(tried, title))
    write_json(f"{path}.json", numbers)
    return "\n".join([table(tried), "", *lines]), f"{path}.svg"
