"""What a checkpoint holds, as bytes: its header, the flow, and the snapshot that people download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from uuid import UUID

import orjson

from server.repository import codec
from server.statemachine.checkpoint import FLOW, PAYLOAD, Header, Part
from server.statemachine.graphs import BUILT_IN
from server.statemachine.history import Base, Kept
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, Flow, Tenant


@dataclass(frozen=True, slots=True)
class Text:
    """One text that a checkpoint is to hold."""

    name: str
    child_type: str
    text: bytes
    sha256: bytes


def texts_of(flow: Flow, documents: Mapping[DocumentPlace, bytes]) -> list[Text]:
    """The flow, then its documents. The analytics are not part of it: they are not brought back."""
    found = [(FLOW, "", codec.base_to_bytes(Base(flow, Kept(), b"")))]
    found += [(place.name, place.child_type, text) for place, text in sorted(documents.items())]
    return [Text(name, child_type, text, sha256(text).digest()) for name, child_type, text in found]


def flow_of(text: bytes, tenant: Tenant, flow_id: UUID) -> Flow:
    """The flow that ``texts_of`` wrote. Raises ValueError, KeyError, TypeError for what it did not write."""
    return codec.base_from_bytes(text, tenant, flow_id, b"", BUILT_IN).flow


def layout(parts: Iterable[Part]) -> list[bytes | Part]:
    """The snapshot, piece by piece: `{"flow": ..., "documents": [{"document": ..., "child_type": ..., "json": ...}, ...]}`."""
    pieces: list[bytes | Part] = []
    before = b',"documents":['
    for part in parts:
        if part.name == FLOW:
            pieces += [b'{"flow":', part]
        elif part.name != PAYLOAD:
            named = orjson.dumps({"document": part.name, "child_type": part.child_type})
            pieces += [before + named[:-1] + b',"json":', part, b"}"]
            before = b","
    return [*pieces, b"]}" if before == b"," else b',"documents":[]}']


def header_of(parts: tuple[Part, ...], texts: Iterable[Text]) -> Header:
    """The header of a checkpoint that has these parts, and these texts for all but the payload."""
    by_place = {(text.name, text.child_type): text.text for text in texts}
    size, digest = 0, sha256()
    for piece in layout(parts):
        text = piece if isinstance(piece, bytes) else by_place[piece.name, piece.child_type]
        size += len(text)
        digest.update(text)
    return Header(parts, size, digest.digest())


def header_to_bytes(header: Header) -> bytes:
    """The header as it is sealed."""
    parts = [[part.name, part.child_type, str(part.content_id), part.size, part.sha256.hex()] for part in header.parts]
    return orjson.dumps({"parts": parts, "snapshot": [header.snapshot_size, header.snapshot_sha256.hex()]})


def header_from_bytes(text: bytes) -> Header:
    """The header that ``header_to_bytes`` wrote. Raises ValueError, KeyError, TypeError for what it did not write."""
    found = orjson.loads(text)
    parts = tuple(
        Part(name, child, UUID(content_id), size, bytes.fromhex(digest)) for name, child, content_id, size, digest in found["parts"]
    )
    size, digest = found["snapshot"]
    return Header(parts, size, bytes.fromhex(digest))
