"""Which key-encryption keys a server works with, and whether they are the database's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.repository.database import Database
from server.vault import EnvironmentKeys, KeyFault, KeyFile, KeyProvider, create_key_file

_REMEDY = "if it is lost for good, `flowledger keys adopt` lets this database go on without what was sealed with it"


async def provided(database: Database, given: str | None, path: Path) -> KeyProvider:
    """The keys that were given, else those in the file, which is made for a database that has seen none yet.

    Of several the first one wraps from now on. Raises KeyFault when they are not the database's, OSError.
    """
    recorded = await database.kek_id()
    provider = await asyncio.to_thread(_opened, given, path, recorded)
    while recorded != provider.key_id:
        if recorded is not None and not provider.knows(recorded):
            where = "FLOWLEDGER_KEYS has another one" if given is not None else f"the key file {path} has another one"
            raise KeyFault(
                f"the tenants' keys in this database are wrapped with key-encryption key {recorded}, and {where} ({provider.key_id}): give "
                f"this server that key too, from where it was made; {_REMEDY}"
            )
        if await database.record_kek_id(recorded, provider.key_id):
            break
        recorded = await database.kek_id()  # another server was quicker, perhaps with another key
    return provider


async def adopted(database: Database, given: str | None, path: Path) -> tuple[str | None, str]:
    """Let the key that was given, else the one in the file, take the place of whatever key the database knows: that one, and the new one.

    What only the old one unwraps stays sealed until it is there again. Raises KeyFault, OSError.
    """
    provider = await asyncio.to_thread(_opened, given, path, None)
    recorded = await database.kek_id()
    while not await database.record_kek_id(recorded, provider.key_id):
        recorded = await database.kek_id()
    return recorded, provider.key_id


def _opened(given: str | None, path: Path, recorded: str | None) -> KeyProvider:
    if given is not None:
        return EnvironmentKeys(given)
    try:
        return KeyFile(path)
    except FileNotFoundError:
        if recorded is not None:
            raise KeyFault(
                f"the tenants' keys in this database are wrapped with key-encryption key {recorded}, and there is no key file {path}: copy "
                f"it from the server that made it, or set FLOWLEDGER_KEYS; {_REMEDY}"
            ) from None
    create_key_file(path, "file")
    return KeyFile(path)
