"""The schema's version: bringing it up, and refusing to serve one that is old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from server.repository.database import UNAVAILABLE, Database, SchemaError, admitted, translated
from server.statemachine.errors import StoreUnavailable

__all__ = ["SchemaError", "check", "downgrade", "migrate", "newest"]

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
# Any number, the same in every process: two that migrate at once go one after the other.
_LOCK = 0x466C6F77
# A migration that waits for a lock makes everybody behind it wait too: better to give up and be run again.
_LOCK_TIMEOUT = "5s"
# What a cluster adds to its transactions' numbers to make positions of them is a multiple of this: no cluster comes to as many.
_POSITIONS = 1 << 48


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def newest() -> str:
    """The version that this code is written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _driven(url: str) -> str:
    return "postgresql+asyncpg://" + url.partition("://")[2]


async def migrate(url: str, target: str = "head") -> tuple[str | None, str | None]:
    """Bring the schema to ``target`` as the role that owns it; the versions before and after.

    A database that was restored into another cluster goes on numbering its events above those that it has. One process at a time, each
    migration in a transaction of its own. Raises StoreUnavailable, and SchemaError when the role may not.
    """

    def run(connection: Connection) -> None:
        command.upgrade(_config(connection), target)
        connection.commit()
        _settle(connection)

    return await _alone(url, run)


async def downgrade(url: str, target: str) -> tuple[str | None, str | None]:
    """Take the schema back to ``target``; the versions before and after. Raises as ``migrate`` does."""

    def run(connection: Connection) -> None:
        command.downgrade(_config(connection), target)

    return await _alone(url, run)


async def _alone(url: str, run: Callable[[Connection], None]) -> tuple[str | None, str | None]:
    engine = create_async_engine(_driven(url), poolclass=NullPool)
    try:
        with translated(), admitted():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
                await connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
                await connection.commit()
                before = await connection.run_sync(_version)
                await connection.commit()
                await connection.run_sync(run)
                await connection.commit()
                return before, await connection.run_sync(_version)
    except DBAPIError as error:  # SQLAlchemy's wrapping of the driver's error, which ``translated`` does not see
        cause = getattr(error.orig, "__cause__", None)
        if isinstance(cause, asyncpg.InsufficientPrivilegeError):
            raise SchemaError(
                "the role in FLOWLEDGER_OWNER_DATABASE_URL may not change the schema: it must own the database, and be allowed to create "
                "the role flowledger_service (or somebody else creates that role first)"
            ) from error
        if isinstance(cause, asyncpg.LockNotAvailableError):
            raise StoreUnavailable(
                f"a table was in use for longer than {_LOCK_TIMEOUT}, nothing was changed: run this again when fewer transactions are open"
            ) from error
        if isinstance(cause, UNAVAILABLE):
            raise StoreUnavailable("PostgreSQL went away: run this again, a migration is done in full or not at all") from error
        raise
    finally:
        await engine.dispose()


def _settle(connection: Connection) -> None:
    """Make sure that what is written from now on has a higher position than all that is there, wherever that was written."""
    has_positions = "EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('installation') AND attname = 'position_base')"
    if not connection.execute(text(f"SELECT {has_positions}")).scalar():  # the schema is not that new yet
        return
    known, base, here = connection.execute(
        text("SELECT cluster_id, position_base, (SELECT system_identifier FROM pg_control_system()) FROM installation")
    ).one()
    if known == here:
        return
    if known is not None:
        base += _POSITIONS
        connection.execute(
            text(f"ALTER TABLE events ALTER COLUMN position SET DEFAULT ((pg_current_xact_id())::text)::bigint + {base:d}::bigint")
        )
    connection.execute(text("UPDATE installation SET cluster_id = :here, position_base = :base"), {"here": here, "base": base})


def _version(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


async def check(database: Database) -> None:
    """Raises SchemaError unless the database has the schema that this code is written for, and row level security binds the service."""
    try:
        found, wanted = await database.schema_version(), newest()
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            "the role that the service connects as may not read the schema: connect as a member of flowledger_service, or set "
            "FLOWLEDGER_DATABASE_ROLE=flowledger_service"
        ) from error
    if found is None:
        raise SchemaError("the database has no Flowledger schema: run `flowledger migrate`")
    if found != wanted:
        known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
        remedy = "run `flowledger migrate`" if found in known else "it was made by a newer Flowledger: serve with that one"
        raise SchemaError(f"the database has schema {found}, this server needs {wanted}: {remedy}")
    if not await database.at_home():
        raise SchemaError(
            "the database was restored from another PostgreSQL, whose transactions are numbered differently: run `flowledger migrate`, so "
            "that those who follow its events miss none"
        )
    if await database.bypasses_row_security():
        raise SchemaError(
            "row level security does not bind the role that the service connects as (a superuser, or BYPASSRLS): connect as a member of "
            "flowledger_service, or set FLOWLEDGER_DATABASE_ROLE=flowledger_service"
        )
