"""The learning rate as a pure function of the step: linear warmup, then a cosine.

Loshchilov & Hutter 2017, eq. 5, without restarts.
"""

import math


def warmup_steps(total_steps: int, ratio: float) -> int:
    """Steps of warmup: the ratio of all steps, rounded, and at least one."""
    return max(1, round(total_steps * ratio))


def learning_rate(
    step: int, total_steps: int, warmup: int, peak: float, floor: float = 0.0
) -> float:
    """Rate of step 1, 2, ..., total_steps.

        step <= warmup:  peak * step / warmup      step 1 already learns; step `warmup` has the peak
        afterwards:      floor + (peak - floor) * (1 + cos(pi * t)) / 2
                         where t = (step - warmup) / (total_steps - warmup)

    so that the last step has exactly the floor; but where all steps are warmup (a run of one step,
    or a warmup ratio of 1) the last one has the peak, as there is no step left for the cosine.
    (Hugging Face counts from 0: its first step has rate 0 and its last one misses the floor.)
    """
    if step <= warmup:
        return peak * (step / warmup)  # in this order, so that step `warmup` has the peak exactly
    t = (step - warmup) / (total_steps - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * t)) / 2
