"""Page tokens: where a list goes on, in a form that only we can make and that fits one tenant and one query.

A token is base64url, without padding, of a version byte, the position and a tag. The tag is HMAC-SHA256, cut to 16 bytes, over the
version, the purpose, the tenant, the query's SHA-256 and the position, each preceded by its length. The position is signed, not secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from functools import lru_cache

from server.statemachine.errors import InvalidRequest, invalid
from server.statemachine.values import Tenant

FIELD = "page_token"
MAX_TOKEN = 2048
_VERSION = b"\x01"
_TAG = 16
MAX_POSITION = MAX_TOKEN // 4 * 3 - len(_VERSION) - _TAG


@lru_cache(maxsize=4096)
def owner(tenant: Tenant) -> str:
    """How the tenant is named in a token's tag."""
    return f"{tenant.client_account_id}/{tenant.engagement_id}"


def seal(key: bytes, purpose: str, tenant: str, query: bytes, position: bytes) -> str:
    """The token for ``position`` in the list that ``purpose`` (the RPC), ``tenant`` and ``query`` (all that selects and sorts) describe.

    ValueError if the position is longer than ``MAX_POSITION`` bytes.
    """
    if len(position) > MAX_POSITION:
        raise ValueError(f"position has {len(position)} bytes, at most {MAX_POSITION} fit into a token")
    sealed = _VERSION + position + _tag(key, purpose, tenant, query, position)
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def open(key: bytes, purpose: str, tenant: str, query: bytes, token: str, field: str = FIELD) -> bytes:
    """The position that ``seal`` was given.

    Raises InvalidRequest on ``field`` for any text that ``seal`` did not return for the same key, purpose, tenant and query.
    """
    if len(token) > MAX_TOKEN:
        raise invalid(field, f"has {len(token)} characters, a token has at most {MAX_TOKEN}: pass it as it came")
    try:
        sealed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _refused(field) from None
    # One position has one spelling: unused bits in the last character are zero, and + and / do not stand for - and _.
    canonical = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode() == token
    version, position, tag = sealed[:1], sealed[1:-_TAG], sealed[-_TAG:]
    if not canonical or version != _VERSION or len(sealed) < len(_VERSION) + _TAG:
        raise _refused(field)
    if not hmac.compare_digest(tag, _tag(key, purpose, tenant, query, position)):
        raise _refused(field)
    return position


def _refused(field: str) -> InvalidRequest:
    # One text for all causes: which check failed is nobody's business but a forger's.
    return invalid(field, "was not made for this request: pass it as it came, with the same filter, order and tenant")


def _tag(key: bytes, purpose: str, tenant: str, query: bytes, position: bytes) -> bytes:
    parts = (_VERSION, purpose.encode(), tenant.encode(), hashlib.sha256(query).digest(), position)
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(key, framed, "sha256")[:_TAG]
