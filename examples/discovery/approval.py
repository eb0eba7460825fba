"""The reviewer's side of a mapping: the table, the question, the decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.discovery.fields import FIELD_BY_NAME
from examples.discovery.inventory import InventoryError
from examples.discovery.mapping import KEEP, SURE, FieldMapping, parse_correction
from examples.discovery.tables import table


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reviewer decided, in their words; ``corrections`` are columns and the fields they are instead."""

    approved: bool
    words: str
    corrections: Mapping[str, str] = field(default_factory=dict)


class NobodyToAsk(Exception):
    """The mapping waits for a person and nobody answers here."""


Read = Callable[[str], Awaitable[str]]
Ask = Callable[[FieldMapping], Awaitable[Decision]]


def mapping_table(mapping: FieldMapping, console: Console) -> Table:
    """The mapping for people: sure matches green, doubtful ones yellow, columns that are kept as they are dim."""
    shown = table(console, "Which column is what", "column", "is", ">sure", ">name", ">values", "~for example")
    for match in mapping.matches:
        style = "dim" if match.field is None else "green" if match.given or match.confidence >= SURE else "yellow"
        label = FIELD_BY_NAME[match.field].label if match.field else "kept as it is"
        sure = "" if match.field is None else "given" if match.given else f"{match.confidence:.0%}"
        name = "" if match.field is None or match.given else f"{match.name_likeness:.0%}"
        values = "" if match.fit is None else f"{match.fit:.0%}"
        shown.add_row(
            Text(match.column), Text(label, style), Text(sure, style), name, values, Text(match.sample, no_wrap=True, overflow="ellipsis")
        )
    return shown


def answered(decision: Decision, console: Console) -> Ask:
    """An asker that shows the mapping and decides as it was told beforehand."""

    async def ask(mapping: FieldMapping) -> Decision:
        console.print(mapping_table(mapping, console))
        return decision

    return ask


def prompted(console: Console, aside: Callable[[], AbstractContextManager[None]], read: Read) -> Ask:
    """An asker that asks a person; ``aside`` makes room on the terminal, ``read`` reads a line and raises EOFError when nobody is there."""

    async def ask(mapping: FieldMapping) -> Decision:
        with aside():
            console.print(mapping_table(mapping, console))
            return await _decision(mapping, console, read)

    return ask


async def _decision(mapping: FieldMapping, console: Console, read: Read) -> Decision:
    doubtful = len(mapping.doubtful)
    if doubtful:
        console.print(f"{doubtful} {'match needs' if doubtful == 1 else 'matches need'} a look (yellow, or below {SURE:.0%}).")
    try:
        while True:
            answer = (await read("Approve this mapping? [y]es, [n]o, or a reason why not: ")).strip()
            if answer.lower() in {"y", "yes"}:
                return Decision(True, "approved on the command line")
            if not answer:
                continue
            reason = (await read("Why not? ")).strip() if answer.lower() in {"n", "no"} else answer
            return Decision(False, reason or "rejected without a reason", await _corrections(mapping, console, read))
    except EOFError:
        raise NobodyToAsk(
            "the mapping waits for approval and nobody answers here: go on with --flow-id and --yes, or --reject REASON"
        ) from None


async def _corrections(mapping: FieldMapping, console: Console, read: Read) -> dict[str, str]:
    corrections: dict[str, str] = {}
    columns = {match.column.lower() for match in mapping.matches}
    while text := (await read(f"Correct a column as COLUMN=FIELD ({KEEP} keeps it as it is), or Enter to go on: ")).strip():
        try:
            column, name = parse_correction(text)
        except InventoryError as error:
            console.print(str(error), markup=False)
            continue
        if column.lower() not in columns or (name != KEEP and name not in FIELD_BY_NAME):
            console.print(
                f"The columns are {', '.join(match.column for match in mapping.matches)}; the fields are {', '.join(FIELD_BY_NAME)}.",
                markup=False,
            )
            continue
        corrections[column] = name
    return corrections
