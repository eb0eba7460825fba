"""How properties are tried here: the same examples in every run, so that a red build can be had again."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def steady(examples: int, steps: int = 50) -> settings:
    """Settings for that many examples, and steps of a stateful test; nothing random, nothing kept on disk."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy with other things
    )
