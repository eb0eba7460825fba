"""Runs measures in alternating rounds, so that a machine that is slow for a while is slow for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.sample import Measure, Result, Sample


async def alternate(
    measures: Sequence[Measure], rounds: int, seconds: float, heard: Callable[[int, Measure, Sample], None]
) -> list[Result]:
    """Each measure once per round for ``seconds``; ``heard`` is told of every sample as it comes."""
    samples: dict[tuple[str, int], list[Sample]] = {measure.key: [] for measure in measures}
    for number in range(1, rounds + 1):
        for measure in measures:
            sample = await measure.run(seconds)
            samples[measure.key].append(sample)
            heard(number, measure, sample)
    return [Result(measure.name, measure.concurrency, tuple(samples[measure.key])) for measure in measures]
