"""The tenants' data keys, unwrapped: kept in memory for a while, and good for nothing once their rows are gone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

from server import vault
from server.checkpoints import places
from server.repository.keys import IDENTITY, KeyRow, Keys
from server.statemachine.errors import KeyUnavailable, NoKey, StoreUnavailable
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant
from server.vault import KeyProvider, UnknownKey, Unopened, Wrapped

KEPT = 2048
KEPT_SECONDS = 300.0

_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """What a tenant seals with now: the newest data key, as it is stored too, and the key that makes digests."""

    row: KeyRow
    key: bytes
    identity: bytes

    def digest(self, sha256: bytes) -> bytes:
        """By which a content with this SHA-256 is found among the tenant's."""
        return vault.fingerprint(self.identity, b"content", sha256)


class _Memory(Generic[_Kept]):
    """Some values, for some time; the least recently used goes first."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._found: OrderedDict[object, tuple[float, _Kept]] = OrderedDict()

    def get(self, name: object) -> _Kept | None:
        found = self._found.get(name)
        if found is None or found[0] < self._monotonic():
            self._found.pop(name, None)
            return None
        self._found.move_to_end(name)
        return found[1]

    def put(self, name: object, value: _Kept) -> None:
        self._found[name] = self._monotonic() + KEPT_SECONDS, value
        if len(self._found) > KEPT:
            self._found.popitem(last=False)

    def drop(self, name: object) -> None:
        self._found.pop(name, None)

    def names(self) -> list[Any]:
        return list(self._found)


class Keyring:
    """Makes, unwraps and remembers data keys.

    A remembered key is never trusted alone. Whatever is read comes with its key's row of the same moment, and what is remembered is found
    by that row; whatever is sealed is stored by a statement that looks at the row again.
    """

    def __init__(self, keys: Keys, provider: KeyProvider, now: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._keys, self._provider, self._now = keys, provider, now
        self._sealing: _Memory[SealingKeys] = _Memory(monotonic)
        self._unwrapped: _Memory[bytes] = _Memory(monotonic)

    async def sealing(self, tenant: Tenant) -> SealingKeys:
        """The keys that the tenant seals with; made when it has none. Raises KeyUnavailable."""
        found = await self.present(tenant)
        if found is None:
            made = [await self._made(tenant, version) for version in (IDENTITY, IDENTITY + 1)]
            await self._keys.add(tenant, made, self._now())
            found = await self.present(tenant)  # of two that make them at once, one is there
            if found is None:
                raise StoreUnavailable("the tenant was erased at this moment: retry in a moment")
        return found

    async def present(self, tenant: Tenant) -> SealingKeys | None:
        """The keys that the tenant seals with; None when it has none. Raises KeyUnavailable."""
        found = self._sealing.get(tenant)
        if found is None:
            rows = await self._keys.all(tenant)
            if len(rows) < 2 or rows[0].version != IDENTITY:  # the identity key, and one that seals
                return None
            found = SealingKeys(rows[-1], await self._certain(tenant, rows[-1]), await self._certain(tenant, rows[0]))
            self._sealing.put(tenant, found)
        return found

    def forget(self, tenant: Tenant) -> None:
        """Look at the tenant's keys again before anything is sealed."""
        self._sealing.drop(tenant)

    def erase(self, tenant: Tenant) -> None:
        """Keep no key of the tenant in memory. Another process may, for a while; it can neither open nor seal anything with it."""
        self.forget(tenant)
        for name in self._unwrapped.names():
            if name[0] == tenant:
                self._unwrapped.drop(name)

    async def opened(self, tenant: Tenant, row: KeyRow) -> bytes:
        """The data key in the row. Raises KeyUnavailable when its key-encryption key is not here, Unopened when the row is damaged."""
        name = tenant, row
        key = self._unwrapped.get(name)
        if key is None:
            try:
                key = await self._provider.unwrap(Wrapped(row.kek_id, row.wrapped), places.of_key(tenant, row.version))
            except UnknownKey:
                raise KeyUnavailable(row.version, row.kek_id) from None
            self._unwrapped.put(name, key)
        return key

    async def fresh(self, tenant: Tenant) -> KeyRow:
        """A key for the version after the newest one, not stored yet.

        An identity key that cannot be unwrapped is exchanged for a new one: what it made can no longer be looked for anyway. Raises NoKey.
        """
        rows = await self._keys.all(tenant)
        if not rows:
            raise NoKey
        try:
            await self._certain(tenant, rows[0])
        except KeyUnavailable:
            await self._keys.exchange(tenant, rows[0], await self._made(tenant, IDENTITY))
        self.forget(tenant)
        return await self._made(tenant, rows[-1].version + 1)

    async def rewrap(self, tenant: Tenant) -> int:
        """Wrap the tenant's keys anew with the provider's present key where they are wrapped with another; how many those were.

        Raises KeyUnavailable, with the others done.
        """
        done = 0
        missing: KeyUnavailable | None = None
        for row in await self._keys.all(tenant):
            if row.kek_id != self._provider.key_id:
                try:
                    wrapped = await self._provider.wrap(await self._certain(tenant, row), places.of_key(tenant, row.version))
                except KeyUnavailable as error:
                    missing = error
                    continue
                done += await self._keys.exchange(tenant, row, KeyRow(row.version, wrapped.key_id, wrapped.sealed))
        self.forget(tenant)
        if missing is not None:
            raise missing
        return done

    async def _made(self, tenant: Tenant, version: int) -> KeyRow:
        wrapped = await self._provider.wrap(vault.new_key(), places.of_key(tenant, version))
        return KeyRow(version, wrapped.key_id, wrapped.sealed)

    async def _certain(self, tenant: Tenant, row: KeyRow) -> bytes:
        try:
            return await self.opened(tenant, row)
        except Unopened:
            raise KeyUnavailable(row.version, row.kek_id) from None
