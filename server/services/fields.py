"""Reading a request field by field: every fault is noted, and all are reported together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import TypeVar
from uuid import UUID

import orjson
from flowledger.v1 import document_pb2
from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2

from server.statemachine import document
from server.statemachine.errors import InvalidRequest, Violation

TEXT_LENGTH = 2000
NAME_LENGTH = 200
UUID_LENGTH = 36
LABELS = 64
_LABEL_KEY = re.compile(r"[a-z0-9][a-z0-9_./-]{0,62}")
_NIL = UUID(int=0)
_MAX_REVISION = 2**63 - 1

_Member = TypeVar("_Member", bound=Enum)
_Parsed = TypeVar("_Parsed")


class Fields:
    """Collects the faults of one request. Each method returns the value, or a placeholder after noting what is wrong."""

    def __init__(self, limits: document.Limits) -> None:
        self.limits = limits
        self._violations: list[Violation] = []

    def wrong(self, field: str, description: str) -> None:
        """Note a fault."""
        self._violations.append(Violation(field, description))

    def check(self) -> None:
        """Raises InvalidRequest if anything was noted."""
        if self._violations:
            raise InvalidRequest(self._violations)

    def uuid(self, field: str, text: str) -> UUID:
        """A required UUID."""
        if not text:
            self.wrong(field, "is required")
            return _NIL
        return self.optional_uuid(field, text) or _NIL

    def optional_uuid(self, field: str, text: str) -> UUID | None:
        """A UUID, or None for an empty text."""
        if not text:
            return None
        found = _uuid(text) if len(text) == UUID_LENGTH else None
        if found is None:
            self.wrong(field, f"must be a UUID in its 36 character form, not {_shown(text)}")
        return found

    def text(self, field: str, text: str, limit: int = TEXT_LENGTH) -> str:
        """A text without U+0000, at most ``limit`` characters."""
        if len(text) > limit:
            self.wrong(field, f"has {len(text)} characters, the limit is {limit}")
        elif "\0" in text:
            self.wrong(field, "contains U+0000, which cannot be stored")
        return text

    def parsed(self, parse: Callable[[str], _Parsed], text: str, fallback: _Parsed) -> _Parsed:
        """What ``parse`` makes of the text; ``fallback`` after noting what it refused."""
        try:
            return parse(text)
        except InvalidRequest as error:
            self._violations += error.violations
            return fallback

    def required(self, field: str, text: str, limit: int = NAME_LENGTH) -> str:
        """A text that must not be empty."""
        if not text:
            self.wrong(field, "is required")
        return self.text(field, text, limit)

    def labels(self, field: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Labels within their limits."""
        if len(labels) > LABELS:
            self.wrong(field, f"has {len(labels)} labels, the limit is {LABELS}")
            return {}
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                self.wrong(f"{field}[{_shown(key)}]", f"is not a label key: {_LABEL_KEY.pattern}")
            self.text(f"{field}[{_shown(key)}]", value, NAME_LENGTH)
        return dict(labels)

    def member(self, field: str, number: int, members: type[_Member], fallback: _Member | None = None) -> _Member:
        """The member with that number. Zero is ``fallback`` where there is one, and refused where there is none."""
        if number == 0 and fallback is not None:
            return fallback
        try:
            return members(number)
        except ValueError:
            known = ", ".join(member.name for member in members)
            self.wrong(field, f"{'is required' if number == 0 else f'{number} is unknown'}; one of {known}")
            return next(iter(members))

    def fraction(self, field: str, value: float) -> float:
        """A number from 0 to 1."""
        if not 0.0 <= value <= 1.0:  # false for NaN too
            self.wrong(field, f"is {value}, it must be from 0 to 1")
            return 0.0
        return value

    def finite(self, field: str, value: float) -> float:
        """A number that is not NaN or infinite."""
        if not math.isfinite(value):
            self.wrong(field, f"is {value}, it must be finite")
            return 0.0
        return value

    def revision(self, field: str, value: int) -> int:
        """A revision, or 0 for none."""
        if not 0 <= value <= _MAX_REVISION:
            self.wrong(field, f"is {value}, it must not be negative")
            return 0
        return value

    def page_size(self, value: int, default: int, largest: int) -> int:
        """How many to return: 0 is the default, more than the largest is the largest (AIP-158)."""
        if value < 0:
            self.wrong("page_size", f"is {value}, it must not be negative")
        return min(value, largest) if value > 0 else default

    def span(self, field: str, duration: duration_pb2.Duration, least: timedelta, most: timedelta) -> timedelta:
        """A span within limits."""
        seconds = duration.seconds + duration.nanos / 1e9
        if not least.total_seconds() <= seconds <= most.total_seconds():
            self.wrong(field, f"is {seconds:g} s, it must be from {least.total_seconds():g} s to {most.total_seconds():g} s")
            return least
        return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)

    def time(self, field: str, given: timestamp_pb2.Timestamp) -> datetime:
        """A time, to the microsecond."""
        try:
            return given.ToDatetime(UTC)
        except (ValueError, OverflowError):
            self.wrong(field, "is not a time from year 1 to 9999 with 0 to 999,999,999 nanoseconds")
            return datetime.min.replace(tzinfo=UTC)

    def document(self, field: str, given: document_pb2.Document) -> bytes:
        """The document's JSON text. Raises LimitExceeded for its size."""
        form = given.WhichOneof("form")
        if form is None:
            self.wrong(field, "must have json or struct")
            return document.EMPTY
        try:
            text = given.json.encode() if form == "json" else self._written(field, given)
            return document.check(text, f"{field}.{form}", self.limits)
        except InvalidRequest as error:
            self._violations += error.violations
            return document.EMPTY

    def _written(self, field: str, given: document_pb2.Document) -> bytes:
        try:
            return orjson.dumps(_members(given.struct))
        except ValueError as error:
            self.wrong(f"{field}.struct", str(error))
            return document.EMPTY


@lru_cache(maxsize=16_384)
def _uuid(text: str) -> UUID | None:
    """The id; callers name the same flows again and again, and the same object is found in dictionaries without being compared."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    # The constructor also takes braces, prefixes, other digits, underscores and hyphens anywhere: one id must have one spelling.
    return found if str(found) == text.lower() else None


def _members(struct: struct_pb2.Struct) -> dict[str, object]:
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> object:
    """The value as orjson writes it; ValueError for one that JSON does not have. As deep as protobuf reads messages, so not endless."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise ValueError(f"holds {number}, which JSON does not have")
            # A Struct knows doubles only; a whole one is written as people expect it, 3 and not 3.0.
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _members(value.struct_value)
        case "list_value":
            return [_plain(inner) for inner in value.list_value.values]
        case "null_value":
            return None
        case _:  # the contract of google.protobuf.Value calls it an error
            raise ValueError("holds a Value without a kind")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
