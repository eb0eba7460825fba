"""Which texts of a flow's documents can still be had: the present ones, and the earlier versions that are made of them."""

from __future__ import annotations

from collections.abc import Iterable

import zstandard

from server.repository.document_store import content_size, unpack, unpack_delta
from server.repository.history_tables import VersionKind
from server.repository.remains import row_of
from server.statemachine import document
from server.statemachine.errors import FlowError
from server.statemachine.evidence import Present, Texts
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.history import Version
from server.statemachine.loose import Loose, Row, bytes_of
from server.statemachine.values import DocumentName, DocumentPlace

_K = FindingKind
# More than any document may have: a damaged header must not make us allocate what it says.
MOST_BYTES = 256 * 1024 * 1024
_LIMITS = document.Limits(max_bytes=MOST_BYTES)
_NAMES = {name.value for name in DocumentName}
HASH_BYTES = 32


class Opener:
    """Opens documents, then their earlier versions page by page, each place from the newest to the oldest."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._findings: list[Finding] = []
        self._present: dict[DocumentPlace, Present] = {}
        self._readable: dict[tuple[DocumentPlace, int], bytes] = {}
        self._strays: dict[bytes, bytes] = {}
        for row in rows:
            self._open(row)
        self._place: DocumentPlace | None = None
        self._later: bytes | None = None

    def take(self, page: Iterable[tuple[tuple[str, str, int], str]]) -> None:
        """Open a page of earlier versions."""
        for (name, child_type, revision), text in page:
            place = DocumentPlace(name, child_type)
            if place != self._place:
                self._place, present = place, self._present.get(place)
                self._later = None if present is None else present.text
            self._later = self._version(row_of(text))
            if self._later is not None:
                self._readable[place, revision] = document.sha256(self._later)

    def opened(self) -> Texts:
        """What could be read."""
        return Texts(self._present, self._readable, self._strays, tuple(self._findings))

    def _open(self, row: Row) -> None:
        name, child_type = row.get("name"), row.get("child_type")
        if not (isinstance(name, str) and isinstance(child_type, str) and name in _NAMES and (name == "data") == bool(child_type)):
            why = f"there is a document called {name!r:.100} of child {child_type!r:.100}, which there cannot be"
            self._findings.append(Finding(_K.DOCUMENT_DAMAGED, why, document=str(name)[:100]))
            stray, _ = _text(row.get("body"))
            if stray is not None:
                self._strays[document.sha256(stray)] = stray
            return
        place = DocumentPlace(name, child_type)
        mine: list[Finding] = []
        loose = Loose(row, mine)
        revision, size, digest = loose.whole("revision", 1), loose.whole("size", 2), loose.octets("sha256", HASH_BYTES)
        text, wrong = _text(row.get("body"))
        if wrong or mine:
            why = wrong or "; ".join(finding.description for finding in mine)
            self._note(_K.DOCUMENT_DAMAGED, place, f"{place}: {why}")
        elif text is not None and (len(text) != size or document.sha256(text) != digest):
            self._note(_K.DOCUMENT_HASH, place, f"{place} has other bytes than its row says: {len(text)} instead of {size}, or other ones")
        version = None if revision is None or size is None or digest is None else Version(revision, size, digest)
        right = not mine and text is not None and version is not None and document.sha256(text) == version.sha256 and len(text) == size
        self._present[place] = Present(place, version, text, right)
        if text is not None and revision is not None:
            self._readable[place, revision] = document.sha256(text)

    def _note(self, kind: FindingKind, place: DocumentPlace, text: str) -> None:
        self._findings.append(Finding(kind, text, child_type=place.child_type, document=place.name))

    def _version(self, row: Row) -> bytes | None:
        """The version's text; None where it does not open, or is not what its row says."""
        body, digest = bytes_of(row.get("body")), bytes_of(row.get("sha256"))
        if body is None or digest is None or row.get("kind") not in (VersionKind.WHOLE.value, VersionKind.DELTA.value):
            return None
        try:
            if content_size(body) > MOST_BYTES:
                return None
            if row.get("kind") == VersionKind.WHOLE.value:
                text = unpack(body)
            elif self._later is None:
                return None
            else:
                text = unpack_delta(body, self._later)
        except zstandard.ZstdError:
            return None
        return text if document.sha256(text) == digest else None


def _text(stored: object) -> tuple[bytes | None, str]:
    """The document that the bytes hold, or why there is none."""
    body = bytes_of(stored)
    if body is None:
        return None, "it has no bytes"
    try:
        if content_size(body) > MOST_BYTES:
            return None, "it does not open: it says that it is larger than any document"
        text = unpack(body)
    except zstandard.ZstdError as error:
        return None, f"it does not open: {error}"
    try:
        return document.check(text, "it", _LIMITS), ""
    except FlowError as error:
        return None, str(error)
