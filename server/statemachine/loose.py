"""Values of rows that may hold anything: read one by one, and what is wrong is noted rather than raised."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TypeVar
from uuid import UUID

from server.statemachine.finding import Finding, FindingKind

Row = Mapping[str, object]
_Member = TypeVar("_Member", bound=Enum)

_SHOWN = 60


class Loose:
    """One row, or one object in it. Each method returns the value, or None after noting why there is none."""

    def __init__(self, row: Row, findings: list[Finding], *, prefix: str = "", child_type: str = "", phase: str = "") -> None:
        self._row, self._findings, self._prefix, self._child_type, self._phase = row, findings, prefix, child_type, phase

    def note(self, kind: FindingKind, name: str, description: str) -> None:
        """Note what is wrong with the field ``name``."""
        self._findings.append(Finding(kind, description, f"{self._prefix}{name}", self._child_type, self._phase))

    def invalid(self, name: str, wanted: str) -> None:
        """Note that the field's value is not what is wanted."""
        self.note(FindingKind.FIELD_INVALID, name, f"{self._prefix}{name} is {shown(self._row.get(name))}, it must be {wanted}")

    def missing(self, name: str) -> None:
        """Note that the field has no value."""
        self.note(FindingKind.FIELD_MISSING, name, f"{self._prefix}{name} is missing")

    def text(self, name: str, *, empty: bool = True, default: str | None = None) -> str | None:
        """A text; ``default`` stands for one that is not there."""
        value = self._row.get(name)
        if value is None:
            if default is None:
                self.missing(name)
            return default
        if not isinstance(value, str):
            self.invalid(name, "a text")
            return None
        if not value and not empty:
            self.missing(name)
            return None
        return value

    def whole(self, name: str, least: int = 0, most: int = 2**63 - 1, default: int | None = None) -> int | None:
        """A whole number within its limits."""
        value = self._row.get(name)
        if value is None:
            if default is None:
                self.missing(name)
            return default
        if type(value) is not int or not least <= value <= most:
            self.invalid(name, f"a whole number from {least} to {most}")
            return None
        return value

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float | None:
        """A number within its limits."""
        value = self._row.get(name)
        if value is None:
            if default is None:
                self.missing(name)
            return default
        if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
            self.invalid(name, f"a number from {least:g} to {most:g}")
            return None
        return float(value)  # type: ignore[arg-type]

    def moment(self, name: str, *, required: bool = True) -> datetime | None:
        """A time."""
        value = self._row.get(name)
        if value is None:
            if required:
                self.missing(name)
            return None
        found = time_of(value)
        if found is None:
            self.invalid(name, "a time")
        return found

    def uuid(self, name: str, *, required: bool = True) -> UUID | None:
        """A UUID."""
        value = self._row.get(name)
        if value is None:
            if required:
                self.missing(name)
            return None
        try:
            return UUID(value if isinstance(value, str) else "")
        except ValueError:
            self.invalid(name, "a UUID")
            return None

    def member(self, name: str, members: type[_Member], kind: FindingKind = FindingKind.FIELD_INVALID) -> _Member | None:
        """The member of that name."""
        value = self._row.get(name)
        if value is None:
            self.missing(name)
            return None
        found = members.__members__.get(value) if isinstance(value, str) else None
        if found is None:
            self.note(kind, name, f"{self._prefix}{name} is {shown(value)}, which there is not")
        return found

    def octets(self, name: str, length: int) -> bytes | None:
        """Bytes of that length, as PostgreSQL writes them down in JSON."""
        value = self._row.get(name)
        if value is None:
            self.missing(name)
            return None
        found = bytes_of(value)
        if found is None or len(found) != length:
            self.invalid(name, f"{length} bytes")
            return None
        return found

    def items(self, name: str) -> list[object] | None:
        """A list."""
        value = self._row.get(name)
        if value is None:
            self.missing(name)
            return None
        if not isinstance(value, list):
            self.invalid(name, "a list")
            return None
        return value

    def texts(self, name: str) -> dict[str, str] | None:
        """An object whose values are texts."""
        value = self._row.get(name)
        if value is None:
            self.missing(name)
            return None
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.invalid(name, "an object of texts")
            return None
        return value


def time_of(value: object) -> datetime | None:
    """The aware time that the text tells; None when it tells none."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def bytes_of(value: object) -> bytes | None:
    """The bytes that PostgreSQL wrote down as ``\\x`` and hexadecimal digits; None for anything else."""
    if not isinstance(value, str) or not value.startswith("\\x"):
        return None
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        return None


def shown(value: object) -> str:
    """The value for people, cut short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
