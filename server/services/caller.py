"""Who makes a call, as its metadata say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from uuid import UUID

from server.statemachine.errors import NoCaller
from server.statemachine.value import dataclass
from server.statemachine.values import Tenant

ACCOUNT_KEY = "x-client-account-id"
ENGAGEMENT_KEY = "x-engagement-id"
USER_KEY = "x-user-id"
_KEYS = frozenset({ACCOUNT_KEY, ENGAGEMENT_KEY, USER_KEY})
USER_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant that a call is made for, and the user or agent who makes it."""

    tenant: Tenant
    user: str


def caller_of(metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """The caller that trusted metadata name. Raises NoCaller for a missing, doubled or malformed entry."""
    found: dict[str, str | bytes] = {}
    for key, value in metadata:
        if key in _KEYS and found.setdefault(key, value) != value:
            raise NoCaller(f"metadata {key} is there twice with different values")
    if len(found) < len(_KEYS):
        missing = ", ".join(sorted(_KEYS - found.keys()))
        raise NoCaller(
            f"metadata {missing} is missing: every call names its tenant ({ACCOUNT_KEY}, {ENGAGEMENT_KEY}) and its user ({USER_KEY})"
        )
    return _caller(found[ACCOUNT_KEY], found[ENGAGEMENT_KEY], found[USER_KEY])


@lru_cache(maxsize=4096)
def _caller(account: str | bytes, engagement: str | bytes, user: str | bytes) -> Caller:
    if not isinstance(user, str) or not user.strip() or len(user) > USER_LENGTH or not user.isprintable():
        raise NoCaller(f"metadata {USER_KEY} must be 1 to {USER_LENGTH} printable characters")
    return Caller(Tenant(_uuid(ACCOUNT_KEY, account), _uuid(ENGAGEMENT_KEY, engagement)), user)


def _uuid(key: str, value: str | bytes) -> UUID:
    try:
        found = UUID(str(value))
    except ValueError:
        found = None
    if found is None or str(found) != str(value).lower():
        raise NoCaller(f"metadata {key} must be a UUID in its 36 character form")
    return found
