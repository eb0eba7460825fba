"""The discovery child's document: what each phase leaves for the next, and for any other client.

Long lists are kept in chunks under a key each, so that a merge patch adds one without sending the others again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from examples.discovery.asset import Asset, Server
from examples.discovery.cleansing import CellChange, CellIssue
from examples.discovery.dependencies import Dependencies
from examples.discovery.inventory import Source
from examples.discovery.mapping import FieldMapping
from examples.discovery.tech_debt import TechDebt
from examples.discovery.totals import Totals

CHUNK_ROWS = 50
MAX_CHUNKS = 40
# The service keeps at most 4 MiB for a child; the assets and findings of a discovery take about three times the room of its rows.
MAX_ROWS_BYTES = 1024 * 1024

T = TypeVar("T")
Chunks = Mapping[str, Sequence[T]]
Patch = dict[str, object]


class DocumentError(ValueError):
    """The flow's document is not one that this worker wrote."""


@dataclass(frozen=True, slots=True)
class Intake:
    """How the file was read."""

    encoding: str
    separator: str
    columns: tuple[str, ...]
    row_count: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CleansingRecord:
    """What was done to the rows. Only so many changes are kept as fit; the counts are exact."""

    server_count: int
    change_count: int
    issue_count: int
    changes: tuple[CellChange, ...]
    issues: tuple[CellIssue, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscoveryDocument:
    """Everything a discovery knows. What is None has not been found out yet.

    ``records`` are the cleansed servers; each chunk goes when its assets exist, which hold the same.
    """

    source: Source | None = None
    intake: Intake | None = None
    rows: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    mapping: FieldMapping | None = None
    corrections: dict[str, str] = field(default_factory=dict)
    cleansing: CleansingRecord | None = None
    records: dict[str, tuple[Server, ...]] = field(default_factory=dict)
    assets: dict[str, tuple[Asset, ...]] = field(default_factory=dict)
    inventory: Totals | None = None
    dependencies: Dependencies | None = None
    tech_debt: TechDebt | None = None

    def all_rows(self) -> list[tuple[str, ...]]:
        """The file's rows, in its order."""
        return [row for key in sorted(self.rows) for row in self.rows[key]]

    def all_assets(self) -> list[Asset]:
        """The assets, in the file's order."""
        return [asset for key in sorted(self.assets) for asset in self.assets[key]]


_DOCUMENT = TypeAdapter(DiscoveryDocument)
_ANY: TypeAdapter[object] = TypeAdapter(object)


def parse_document(json: str) -> DiscoveryDocument:
    """The document in ``json``; DocumentError when it is not one of ours."""
    try:
        return _DOCUMENT.validate_json(json or "{}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DocumentError(f"the flow's discovery document is not one that this worker writes: {place}: {first['msg']}") from None


def patch_json(patch: Patch) -> str:
    """``patch`` as JSON text. None removes a member (RFC 7396)."""
    return _ANY.dump_json(patch).decode()


def list_patch(items: Sequence[object]) -> list[object]:
    """``items`` without what they do not state, which is most of an asset."""
    dumped = _ANY.dump_python(list(items), mode="json", exclude_defaults=True)
    assert isinstance(dumped, list)
    return dumped


def chunks(items: Sequence[T]) -> dict[str, Sequence[T]]:
    """``items`` in at most MAX_CHUNKS chunks, under keys that sort in their order."""
    size = max(CHUNK_ROWS, -(-len(items) // MAX_CHUNKS))
    return {f"{start:06d}": items[start : start + size] for start in range(0, len(items), size)}
