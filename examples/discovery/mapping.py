"""Which column of an inventory is which field of an asset, and how sure that is.

For every column and field there are two witnesses: the column's *name* (how like the field's names it is, 0 to 1) and its *values* (which
share of them could be values of the field, 0 to 1). With n, v and t, the field's `telling` (how much values alone prove):

    confidence = 1 - (1 - n v) (1 - t v)        a name counts as far as the values agree; values alone count as far as they tell
    confidence = BLANK_COLUMN * n               for a column without values

The best pair is matched first; a column has one field, a field one column. From SURE on a match is a match, from LIKELY on a person
should look at it, below it is none: the column is kept with each asset under its own name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from examples.discovery.fields import FIELD_BY_NAME, FIELDS, Field, fit, is_blank
from examples.discovery.inventory import InventoryError

SURE = 0.80
LIKELY = 0.50
BLANK_COLUMN = 0.85
SAMPLE_ROWS = 2000
KEEP = "-"  # as a field in a correction: the column is none of ours
_NOISE = frozenset(
    {"mb", "gb", "tb", "kb", "mib", "gib", "tib", "bytes", "in", "the", "of", "num", "number", "no", "total", "count", "allocated"}
)


@dataclass(frozen=True, slots=True)
class ColumnMatch:
    """What one column was found to be. ``field`` is None when it is kept as it is; ``fit`` when the column has no values."""

    column: str
    field: str | None = None
    confidence: float = 0.0
    name_likeness: float = 0.0
    fit: float | None = None
    given: bool = False
    sample: str = ""


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """What every column of an inventory was found to be, in the file's order."""

    matches: tuple[ColumnMatch, ...]

    def column_of(self, field: str) -> str | None:
        """The column that is ``field``; None when there is none."""
        return next((match.column for match in self.matches if match.field == field), None)

    @property
    def doubtful(self) -> tuple[ColumnMatch, ...]:
        """The matches that a person should look at."""
        return tuple(match for match in self.matches if match.field and match.confidence < SURE)

    @property
    def missing(self) -> tuple[str, ...]:
        """The fields that no column was found for."""
        found = {match.field for match in self.matches}
        return tuple(field.name for field in FIELDS if field.name not in found)


def map_columns(columns: Sequence[str], rows: Sequence[Sequence[str]], corrections: Mapping[str, str]) -> FieldMapping:
    """The mapping of ``columns``; ``corrections`` (column to field, or KEEP) come first and are not doubted.

    Raises InventoryError for a correction that names no column or no field, or one field twice.
    """
    given = _checked(corrections, columns)
    values = {column: [row[at] for row in rows[:SAMPLE_ROWS] if not is_blank(row[at])] for at, column in enumerate(columns)}
    taken_fields = {field for field in given.values() if field != KEEP}
    candidates = [
        _candidate(column, field, values[column])
        for column in columns
        if column not in given
        for field in FIELDS
        if field.name not in taken_fields
    ]
    found: dict[str, ColumnMatch] = {
        column: ColumnMatch(column, None if field == KEEP else field, 1.0, 1.0, None, True, _sample(values[column]))
        for column, field in given.items()
    }
    # A stable sort: of equal candidates the column that stands first in the file wins.
    for match in sorted(candidates, key=lambda candidate: -candidate.confidence):
        if match.confidence < LIKELY:
            break
        if match.column not in found and match.field not in taken_fields:
            found[match.column] = match
            taken_fields.add(str(match.field))
    return FieldMapping(tuple(found.get(column) or ColumnMatch(column, sample=_sample(values[column])) for column in columns))


def parse_correction(text: str) -> tuple[str, str]:
    """The column and the field of `column=field`; InventoryError when it is not that."""
    column, equals, field = text.rpartition("=")
    if not equals or not column.strip() or not field.strip():
        raise InventoryError(f"{text!r} is not column=field, for example vmhost=host, or vmhost={KEEP} to keep the column as it is")
    return column.strip(), field.strip()


def name_likeness(column: str, field: Field) -> float:
    """How like the names of ``field`` the name ``column`` is, 0 to 1."""
    strong = max(_likeness(column, alias) for alias in (*field.aliases, field.name))
    weak = max((_likeness(column, alias) for alias in field.weak_aliases), default=0.0)
    return max(strong, 0.7 * weak)


def _candidate(column: str, field: Field, values: Sequence[str]) -> ColumnMatch:
    likeness = name_likeness(column, field)
    if not values:
        return ColumnMatch(column, field.name, round(BLANK_COLUMN * likeness, 3), likeness, None, False, "")
    share = fit(field, values)
    confidence = 1 - (1 - likeness * share) * (1 - field.telling * share)
    return ColumnMatch(column, field.name, round(confidence, 3), round(likeness, 3), round(share, 3), False, _sample(values))


def _likeness(column: str, alias: str) -> float:
    left, right = _words(column), _words(alias)
    if not left or not right:
        return 0.0
    squashed_left, squashed_right = "".join(left), "".join(right)
    if left == right or squashed_left == squashed_right:
        return 1.0
    if set(left) == set(right):
        return 0.95
    if set(right) < set(left):  # "primary mem size" says "mem size" and more
        return 0.55 + 0.35 * len(right) / len(left)
    ratio = difflib.SequenceMatcher(None, squashed_left, squashed_right).ratio()
    return 0.9 * ratio if ratio > 0.8 and min(len(squashed_left), len(squashed_right)) > 3 else 0.0


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = [word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[^\W_]+", spaced.lower())]
    return [word for word in words if word not in _NOISE] or words


def _sample(values: Sequence[str]) -> str:
    return values[0][:80] if values else ""


def _checked(corrections: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    by_lower = {column.lower(): column for column in columns}
    given: dict[str, str] = {}
    for asked, field in corrections.items():
        column = by_lower.get(asked.lower())
        if column is None:
            raise InventoryError(f"the inventory has no column {asked!r}; it has {', '.join(columns)}")
        if field != KEEP and field not in FIELD_BY_NAME:
            raise InventoryError(
                f"{field!r} is not a field; the fields are {', '.join(FIELD_BY_NAME)}, or {KEEP} to keep the column as it is"
            )
        if field != KEEP and field in given.values():
            raise InventoryError(f"the field {field} was given to two columns")
        given[column] = field
    return given
