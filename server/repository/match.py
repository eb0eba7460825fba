"""Filters of events, decided in Python: an event is told to many streams, each with a filter of its own, and read once for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.repository.filter import OPERATORS, Comparison, Conjunction, Disjunction, Expression, Filter, Negation, Operator, Pattern


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a filter sees of an event: the flow as the event left it, and the phases that the event is about."""

    type: str
    status: str
    phases: frozenset[str]
    labels: Mapping[str, str] = field(hash=False)


def matches(filter: Filter, seen: Sighting) -> bool:
    """Whether the filter lets the event through. As in SQL, but that texts are ordered by their code points."""
    return filter.expression is None or _true(filter.expression, seen)


def _true(expression: Expression, seen: Sighting) -> bool:
    match expression:
        case Comparison():
            return _compared(expression, seen)
        case Negation():
            return not _true(expression.operand, seen)
        case Conjunction():
            return all(_true(operand, seen) for operand in expression.operands)
        case Disjunction():
            return any(_true(operand, seen) for operand in expression.operands)


def _compared(comparison: Comparison, seen: Sighting) -> bool:
    values = _values(comparison, seen)
    if comparison.operator is Operator.HAS:
        return bool(values)
    if comparison.operator is Operator.NOT_EQUAL:  # of several phases none may be equal; what is not there is not unequal either
        return bool(values) and not any(_holds(Operator.EQUAL, value, comparison.value) for value in values)
    return any(_holds(comparison.operator, value, comparison.value) for value in values)


def _values(comparison: Comparison, seen: Sighting) -> Iterable[str]:
    match comparison.field:
        case "type":
            return (seen.type,)
        case "status":
            return (seen.status,)
        case "phase":
            return seen.phases
        case _ if comparison.label is None:
            return seen.labels
        case _:
            return (seen.labels[comparison.label],) if comparison.label in seen.labels else ()


def _holds(operator: Operator, value: str, wanted: Any) -> bool:
    if isinstance(wanted, Pattern):
        return re.fullmatch(".*".join(map(re.escape, wanted.pieces)), value, re.DOTALL) is not None
    return bool(OPERATORS[operator](value, wanted))
