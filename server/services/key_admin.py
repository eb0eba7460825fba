"""The part of AdminService about keys: rotation, its progress, and erasure."""

from __future__ import annotations

from flowledger.v1 import admin_service_pb2 as pb

from server.checkpoints.archive import Archive
from server.repository.erasure import Erasure
from server.repository.requests import Reply
from server.repository.store import Store
from server.services import times
from server.services.caller import Caller
from server.services.fields import Fields
from server.services.flow_service import Sources
from server.services.replies import first_answer, reply_of
from server.statemachine import document
from server.statemachine.erasure import Erased, Receipt
from server.statemachine.errors import StoreUnavailable

ATTEMPTS = 10


class KeyAdmin:
    """Rotates and destroys a tenant's keys."""

    def __init__(self, store: Store, archive: Archive, erasure: Erasure, sources: Sources, limits: document.Limits) -> None:
        self._store, self._archive, self._erasure = store, archive, erasure
        self._sources, self._limits = sources, limits

    async def RotateTenantKey(self, request: pb.RotateTenantKeyRequest, caller: Caller) -> pb.RotateTenantKeyResponse | bytes:
        """The new key's version."""
        fields = Fields(self._limits)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        for _ in range(ATTEMPTS):
            if (found := await first_answer(self._store.database, caller.tenant, request)) is not None:
                return found
            fresh = await self._archive.keyring.fresh(caller.tenant)
            response = pb.RotateTenantKeyResponse(key_version=fresh.version)
            if await self._archive.keys.rotate(caller.tenant, fresh, self._sources.now(), reply_of(request, response)):
                self._archive.keyring.forget(caller.tenant)
                return response
        raise StoreUnavailable(f"others gave this tenant new keys in each of {ATTEMPTS} attempts: retry in a moment")

    async def GetKeyRotation(self, _: pb.GetKeyRotationRequest, caller: Caller) -> pb.GetKeyRotationResponse:
        """How far the sealing anew has come."""
        progress = await self._archive.rotating.progress(caller.tenant)
        return pb.GetKeyRotationResponse(
            key_version=progress.version, old_versions=progress.older, remaining=progress.remaining, resealed=progress.resealed
        )

    async def EraseTenant(self, request: pb.EraseTenantRequest, caller: Caller) -> pb.EraseTenantResponse | bytes:
        """The receipt."""
        fields, tenant = Fields(self._limits), caller.tenant
        if request.confirm != f"{tenant.client_account_id}/{tenant.engagement_id}":
            fields.wrong("confirm", "must be the caller's own client account id, a slash and the engagement id, in lower case")
        reason = fields.text("reason", request.reason)
        fields.optional_uuid("request_id", request.request_id)
        fields.check()
        if request.validate_only:
            return pb.EraseTenantResponse(receipt=_counted(await self._erasure.count(tenant)))
        if (found := await first_answer(self._store.database, tenant, request)) is not None:
            return found

        def receipt(erased: Erased) -> Receipt:
            return Receipt(self._sources.new_id(), self._sources.now(), caller.user, reason, erased)

        def reply(made: Receipt) -> Reply | None:
            return reply_of(request, _response(made))

        done = await self._erasure.erase(tenant, reply_of(request), receipt, reply)
        self._archive.keyring.erase(tenant)
        if done is None:
            found = await first_answer(self._store.database, tenant, request)
            assert found is not None  # that is what was in the way
            return found
        made, flows = done
        self._store.commits.forget(flows)
        return _response(made)


def _counted(erased: Erased) -> pb.ErasureReceipt:
    return pb.ErasureReceipt(
        keys_destroyed=erased.keys,
        flows=erased.flows,
        events=erased.events,
        documents=erased.documents,
        checkpoints=erased.checkpoints,
        audit_digest=erased.digest,
        key_encryption_keys=erased.kek_ids,
    )


def _response(made: Receipt) -> pb.EraseTenantResponse:
    receipt = _counted(made.erased)
    receipt.receipt_id, receipt.actor, receipt.reason = str(made.receipt_id), made.actor, made.reason
    receipt.time.CopyFrom(times.timestamp(made.time))
    return pb.EraseTenantResponse(receipt=receipt)
