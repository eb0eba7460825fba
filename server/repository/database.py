"""The connections to PostgreSQL, and the only place where anything is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from sqlalchemy import select

from server.repository.statement import Statement, gate, named
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import Tenant

_AWAY = "PostgreSQL is away or too busy: retry, with the same request_id if one was given"

PoolConnection: TypeAlias = "PoolConnectionProxy[Any]"
# The driver's record is a tuple in all but name.
Row = Any

# What says "not now" rather than "never": the connection broke, the server starts or stops, a limit or a lock timed out.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
)
# Another transaction was in the way: the same statement, sent again, goes through.
COLLISIONS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


# The database is there and will not have us: nothing that waiting mends.
_UNWANTED = (
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidParameterValueError,
    asyncpg.UndefinedObjectError,
)


class SchemaError(Exception):
    """The database cannot be served as it is; the text says what to do."""


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's "not now" into StoreUnavailable; everything else is a fault of ours and passes through."""
    try:
        yield
    except UNAVAILABLE as error:
        raise StoreUnavailable(_AWAY) from error


@contextmanager
def admitted() -> Iterator[None]:
    """Turns a refused connection into SchemaError."""
    try:
        yield
    except _UNWANTED as error:
        raise SchemaError(f"PostgreSQL refuses the connection: {error}. See FLOWLEDGER_DATABASE_URL and its companions") from error


class Connection(asyncpg.Connection):
    """A pooled connection that is handed on as it is: tenant settings are transaction-local, so that nothing can leak."""

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the driver's signature
        """Nothing to reset, unless a cancelled caller left its transaction open."""
        if self.is_in_transaction():
            await self.execute("ROLLBACK", timeout=timeout)


_NAME_TENANTS = Statement(select(gate().c.tenants))


@dataclass(frozen=True, slots=True)
class Transaction:
    """One open transaction that may touch the tenants it was begun for."""

    connection: PoolConnection
    tenants: str

    async def rows(self, statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What the statement returns."""
        return await self.connection.fetch(statement.text, *statement.arguments({**values, "tenants": self.tenants}))


class Line:
    """One connection, kept from call to call: the pool's hand-over costs as much as a small statement."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: PoolConnection | None = None

    async def send(self, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What the statement returns, as a transaction of its own. Raises StoreUnavailable."""
        with translated():
            if self._connection is None or _lost(self._connection):
                await self.close()
                self._connection = await self._database.lend()
            try:
                found = await self._connection.fetch(statement.text, *statement.arguments({**values, "tenants": named(tenants)}))
            except BaseException:
                await self.close()  # who knows what state it is in: the pool looks after that
                raise
            if self._database.scarce:
                await self.close()
            return found

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._database.take_back(connection)


def _lost(connection: PoolConnection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # it broke while nobody used it, and the pool took it back by itself
        return True


class Database:
    """A pool of connections; every statement names the tenants it touches."""

    def __init__(self, pool: asyncpg.Pool[Any], patience: float, url: str) -> None:
        """``patience`` is how long to wait for a free connection, in seconds; ``url`` is where the pool's connections lead."""
        self._pool, self._patience, self.url = pool, patience, url
        self._lines: list[Line] = []

    def line(self) -> Line:
        """A connection for somebody who sends one statement after another."""
        line = Line(self)
        self._lines.append(line)
        return line

    @property
    def scarce(self) -> bool:
        """Whether the pool is too small for lines to keep their connections while they have nothing to send."""
        return self._pool.get_max_size() < len(self._lines) + 2

    async def lend(self) -> PoolConnection:
        """A free connection. Raises TimeoutError when none comes free in time."""
        return await self._pool.acquire(timeout=self._patience)

    async def take_back(self, connection: PoolConnection) -> None:
        """Return a connection to the pool; a broken one is replaced."""
        await self._pool.release(connection)

    async def close_lines(self) -> None:
        """Give back what is kept."""
        for line in self._lines:
            await line.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnection]:
        connection = await self.lend()
        try:
            yield connection
        finally:
            await self.take_back(connection)

    @asynccontextmanager
    async def begin(self, tenants: Sequence[Tenant]) -> AsyncIterator[Transaction]:
        """A transaction that is committed when the block ends, and rolled back when it raises.

        A single statement needs none: PostgreSQL begins and commits it in the same round trip (``read``, ``Line.send``).
        Raises StoreUnavailable when PostgreSQL is away; whether it committed is then unknown.
        """
        with translated():
            async with self._connection() as connection, connection.transaction():
                transaction = Transaction(connection, named(tenants))
                await transaction.rows(_NAME_TENANTS, {})
                yield transaction

    async def read(self, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What one reading statement returns; it sees one snapshot. The statement must be behind its ``gate``."""
        with translated():
            async with self._connection() as connection:
                return await connection.fetch(statement.text, *statement.arguments({**values, "tenants": named(tenants)}))

    async def token_key(self) -> bytes:
        """The key that every process on this database signs page tokens with."""
        with translated():
            async with self._connection() as connection:
                key: bytes = await connection.fetchval("SELECT token_key FROM installation")
                return key

    async def schema_version(self) -> str | None:
        """The version that the last migration left; None before the first."""
        with translated():
            async with self._connection() as connection:
                try:
                    version: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
                except asyncpg.UndefinedTableError:
                    return None
                return version

    async def at_home(self) -> bool:
        """Whether the database is in the cluster that its positions are counted by."""
        with translated():
            async with self._connection() as connection:
                query = "SELECT cluster_id = (SELECT system_identifier FROM pg_control_system()) FROM installation"
                return bool(await connection.fetchval(query))

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification, in a transaction of its own: one within a commit would put all commits in line (PERFORMANCE.md)."""
        with translated():
            async with self._connection() as connection:
                await connection.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def bypasses_row_security(self) -> bool:
        """Whether the role that statements run as is beyond row level security."""
        with translated():
            async with self._connection() as connection:
                query = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
                return bool(await connection.fetchval(query))

    async def check(self) -> None:
        """Raises StoreUnavailable unless PostgreSQL answers."""
        with translated():
            async with self._connection() as connection:
                await connection.execute("SELECT 1")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the pool behaves; times in seconds."""

    smallest: int = 2
    largest: int = 10
    statement_timeout: float = 5.0
    patience: float = 5.0
    role: str | None = None


@asynccontextmanager
async def connected(url: str, settings: PoolSettings) -> AsyncIterator[Database]:
    """The database behind ``url`` while the block lasts. Raises StoreUnavailable when it cannot be reached."""
    milliseconds = str(int(settings.statement_timeout * 1000))
    session = {
        "application_name": "flowledger",
        "timezone": "UTC",
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": str(int(settings.statement_timeout * 4000)),
        # The statements are few, their shape does not depend on the values, and planning them anew costs more than running them.
        "plan_cache_mode": "force_generic_plan",
        "jit": "off",
    }
    if settings.role:
        session["role"] = settings.role
    with translated(), admitted():
        pool = await asyncpg.create_pool(
            url,
            min_size=settings.smallest,
            max_size=settings.largest,
            connection_class=Connection,
            server_settings=session,
            command_timeout=settings.statement_timeout + 1.0,  # for a server that has stopped answering at all
            timeout=settings.patience,
            max_inactive_connection_lifetime=300.0,
            max_queries=1_000_000,
            max_cached_statement_lifetime=0,  # the statements are the same for ever
            max_cacheable_statement_size=0,  # of any size
        )
    database = Database(pool, settings.patience, url)
    try:
        yield database
    finally:
        await database.close_lines()
        try:
            await asyncio.wait_for(pool.close(), settings.patience)
        except TimeoutError:
            pool.terminate()
