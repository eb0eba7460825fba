"""Saves an audit export, and verifies one offline: it needs neither the service nor its database, only the file and the key.

    python -m flowledger_client.audit_export save 127.0.0.1:50051 ACCOUNT ENGAGEMENT export.bin
    python -m flowledger_client.audit_export verify export.bin [PUBLIC_KEY_IN_HEX]

Keep the key, or the head that ``verify`` prints, somewhere else than the export: without a key that is known from elsewhere a forger signs
with one of his own, and without a head that is known from elsewhere he hands out an older export.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import admin_service_pb2_grpc, audit_pb2
from google.protobuf.message import DecodeError

Messages = Iterable[pb.ExportAuditResponse]


class Broken(Exception):
    """The export is not what the service exported, or the service exported a chain that does not hold; the text says where."""


@dataclass(slots=True)
class Verified:
    """What an export that holds is made of."""

    public_key: bytes
    flows: int = 0
    events: int = 0
    # Of which only the hash was left, or exported.
    without_content: int = 0
    # Flows whose beginning was compacted: what was before is taken from the service.
    compacted: list[str] = field(default_factory=list)
    head_hash: bytes = b""
    digest: bytes = b""


def read(file: BinaryIO) -> Iterator[pb.ExportAuditResponse]:
    """The messages of a saved export, each behind its length. Raises Broken where the file was cut off or is none."""
    while length := file.read(4):
        size = int.from_bytes(length, "big")
        body = file.read(size)
        if len(length) < 4 or len(body) < size:
            raise Broken("the file is cut off")
        try:
            message = pb.ExportAuditResponse.FromString(body)
        except DecodeError:
            raise Broken("the file is not a saved export, or was changed") from None
        message.DiscardUnknownFields()  # type: ignore[no-untyped-call, unused-ignore]
        if message.ByteSize() != size:
            raise Broken("the file holds what this verifier does not know: it was changed, or is of a newer service")
        yield message


def save(messages: Messages, file: BinaryIO) -> None:
    """Write the messages as they come."""
    for message in messages:
        body = message.SerializeToString()
        file.write(len(body).to_bytes(4, "big") + body)


def verified(messages: Messages, public_key: bytes | None = None) -> Verified:
    """What the export is made of, if every signature and every link in it holds. Raises Broken.

    Without ``public_key`` the export's own is taken, which proves that it is of one piece, not who made it.
    """
    stream = iter(messages)
    opening = next(stream, None)
    if opening is None or not opening.public_key:
        raise Broken("the export does not begin with its key")
    if public_key is not None and opening.public_key != public_key:
        raise Broken("the export was signed with another key")
    found = Verified(opening.public_key)
    try:
        key = Ed25519PublicKey.from_public_bytes(opening.public_key)
        tenant = _id(opening.client_account_id) + _id(opening.engagement_id)
        asked = _id(opening.flow_id) if opening.flow_id else bytes(16)
    except ValueError:
        raise Broken("the export does not say whose it is") from None
    page_hash = hashlib.sha256(b"flowledger audit 1\0" + tenant + asked).digest()
    number = 0
    chain = _Chain(tenant, found)
    for message in stream:
        if message.HasField("page"):
            page, number = message.page, number + 1
            try:
                links = b"".join(_id(event.flow_id) + event.revision.to_bytes(8, "big") + event.hash for event in page.events)
            except (ValueError, OverflowError):
                raise Broken(f"page {number} names what is no event") from None
            page_hash = hashlib.sha256(page_hash + links).digest()
            if page.number != number or page.page_hash != page_hash:
                raise Broken(f"page {number} is not the one that was exported")
            _check(key, page.signature, b"flowledger audit page\0" + number.to_bytes(8, "big") + page_hash, f"page {number}")
            for event in page.events:  # which are as they were exported: the signature holds
                chain.follow(event)
        elif message.head_hash:
            chain.end()
            found.head_hash, found.digest = page_hash, chain.heads.digest()
            if message.head_hash != page_hash:
                raise Broken("the head is not the last page's")
            summary = message.summary
            counts = (number, summary.flows, summary.events, summary.erased_events)
            signed = b"flowledger audit head\0" + page_hash + summary.digest + b"".join(count.to_bytes(8, "big") for count in counts)
            _check(key, message.head_signature, signed, "the head")
            if (summary.digest, summary.flows, summary.events) != (found.digest, found.flows, found.events):
                raise Broken("the last events are not the ones at which the flows stood")
            if next(stream, None) is not None:
                raise Broken("something stands after the head")
            return found
    raise Broken("the export ends before its head: something was cut off")


class _Chain:
    """Follows each flow's events from link to link."""

    def __init__(self, tenant: bytes, found: Verified) -> None:
        self._tenant, self._found = tenant, found
        self.heads = hashlib.sha256()
        self._flow_id, self._revision, self._hash = "", 0, bytes(32)

    def follow(self, event: audit_pb2.AuditedEvent) -> None:
        """One more event. Raises Broken."""
        if event.flow_id != self._flow_id:
            if self._flow_id and _id(event.flow_id) <= _id(self._flow_id):
                raise Broken(f"flow {event.flow_id} is not in its place")
            self.end()
            self._flow_id, self._revision, self._hash = event.flow_id, 0, bytes(32)
            self._found.flows += 1
        if event.previous_hash:
            self._found.compacted.append(event.flow_id)
            self._revision, self._hash = event.revision - 1, event.previous_hash
        if event.revision != self._revision + 1:
            raise Broken(f"flow {event.flow_id}: the event of revision {self._revision + 1} is missing")
        if event.content and hashlib.sha256(event.content).digest() != event.content_sha256:
            raise Broken(f"flow {event.flow_id}: revision {event.revision} is not what was hashed")
        expected = self._expected(event)
        if expected is not None and expected != event.hash:
            raise Broken(f"flow {event.flow_id}: revision {event.revision} does not follow from the one before")
        self._revision, self._hash = event.revision, event.hash
        self._found.events += 1
        self._found.without_content += not event.content

    def _expected(self, event: audit_pb2.AuditedEvent) -> bytes | None:
        """What the event's hash must be; None where that cannot be said: of an old event whose content is not there."""
        flow = self._tenant + _id(event.flow_id)
        if event.format not in (1, 2):
            raise Broken(f"flow {event.flow_id}: revision {event.revision} is of no format that this verifier knows")
        if event.format == 1:
            return hashlib.sha256(self._hash + flow + event.content).digest() if event.content else None
        return hashlib.sha256(self._hash + flow + event.revision.to_bytes(8, "big") + event.content_sha256).digest()

    def end(self) -> None:
        """The flow's last event was followed."""
        if self._flow_id:
            self.heads.update(_id(self._flow_id) + self._revision.to_bytes(8, "big") + self._hash)


def _id(text: str) -> bytes:
    """Its 16 bytes. Raises ValueError for anything but an id as the service writes it."""
    found = UUID(text)
    if str(found) != text:
        raise ValueError(text)
    return found.bytes


def _check(key: Ed25519PublicKey, signature: bytes, signed: bytes, what: str) -> None:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        raise Broken(f"{what} does not carry the key's signature") from None


def main(arguments: list[str]) -> int:
    """Save or verify; the exit code."""
    match arguments:
        case ["save", address, account, engagement, path]:
            metadata = (("x-client-account-id", account), ("x-engagement-id", engagement), ("x-user-id", "audit"))
            with grpc.insecure_channel(address) as channel, Path(path).open("wb") as file:
                stub = admin_service_pb2_grpc.AdminServiceStub(channel)
                save(stub.ExportAudit(pb.ExportAuditRequest(), metadata=metadata), file)
        case ["verify", path, *key]:
            with Path(path).open("rb") as file:
                try:
                    found = verified(read(file), bytes.fromhex(key[0]) if key else None)
                except Broken as broken:
                    print(f"BROKEN: {broken}")
                    return 1
            print(f"{found.flows} flows, {found.events} events: every signature and every link holds")
            print(f"{len(set(found.compacted))} flows begin where compaction cut them, {found.without_content} events are hashes only")
            print(f"key    {found.public_key.hex()}{'' if key else '  (from the export itself: compare it)'}")
            print(f"head   {found.head_hash.hex()}\ndigest {found.digest.hex()}")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
