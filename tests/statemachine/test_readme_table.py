"""README's table of phase states is the machine's table."""

from __future__ import annotations

import re
from pathlib import Path

from server.statemachine.states import IN_PROGRESS_FULL, STATE_WEIGHTS, TRANSITIONS, PhaseState

README = Path(__file__).parents[2] / "README.md"


def rows() -> list[list[str]]:
    """The cells of the table with the columns ``from | to | weight``, without emphasis."""
    lines = [[cell.strip(" `*") for cell in line.strip().strip("|").split("|")] for line in README.read_text("utf-8").splitlines()]
    header = [cells for cells in lines if [cell.lower() for cell in cells] == ["from", "to", "weight"]]
    assert len(header) == 1, "README.md has one table with the columns `from | to | weight`"
    found = []
    for cells in lines[lines.index(header[0]) + 2 :]:
        if len(cells) != 3:
            break
        found.append(cells)
    return found


def words(cell: str) -> list[str]:
    return re.findall(r"[A-Z_]+", cell)


def test_readme_lists_every_state_once_and_in_the_contracts_order() -> None:
    assert [words(before) for before, _, _ in rows()] == [[state.name] for state in PhaseState]


def test_readme_says_what_may_follow_each_state() -> None:
    assert {before: words(to) for before, to, _ in rows()} == {
        before.name: [to.name for to in after] for before, after in TRANSITIONS.items()
    }


def test_readme_says_how_much_each_state_weighs() -> None:
    told = {before: [float(number) for number in re.findall(r"\d+(?:\.\d+)?", weight)] for before, _, weight in rows()}
    expected = {state.name: [weight] for state, weight in STATE_WEIGHTS.items()}
    assert told == {**expected, "IN_PROGRESS": [*expected["IN_PROGRESS"], IN_PROGRESS_FULL]}
