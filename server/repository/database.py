"""The connections to PostgreSQL, and the only place where anything is committed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import select

from server.repository.connections import Connections, PoolConnection
from server.repository.session import Pooler, Session
from server.repository.statement import Statement, gate, named
from server.statemachine.errors import StoreUnavailable
from server.statemachine.values import Tenant

_AWAY = "PostgreSQL is away or too busy: retry, with the same request_id if one was given"

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
# How often work that collided is begun anew.
ATTEMPTS = 5
_Made = TypeVar("_Made")
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


async def undisturbed(work: Callable[[], Awaitable[_Made]], *others: type[asyncpg.PostgresError]) -> _Made:
    """What ``work`` comes to, begun anew when PostgreSQL ended it because somebody was in the way, or with one of these ``others``.

    Raises StoreUnavailable when that goes on.
    """
    disturbances: tuple[type[asyncpg.PostgresError], ...] = (*COLLISIONS, *others)
    for _ in range(ATTEMPTS):
        try:
            return await work()
        except disturbances:
            continue
    raise StoreUnavailable(f"others were in the way in each of {ATTEMPTS} attempts: retry in a moment")


@contextmanager
def admitted() -> Iterator[None]:
    """Turns a refused connection into SchemaError."""
    try:
        yield
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):  # a pooler says with the same code that PostgreSQL is away
            raise
        raise SchemaError(
            f"FLOWLEDGER_DATABASE_URL leads to a pooler ({error}): set FLOWLEDGER_POOLER=transaction, or name PostgreSQL itself"
        ) from error
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
    # How long one statement may take, in seconds, where the pool's own limit does not do.
    seconds: float | None = None

    async def rows(self, statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What the statement returns."""
        arguments = statement.arguments({**values, "tenants": self.tenants})
        return await self.connection.fetch(statement.text, *arguments, timeout=self.seconds)


class Line:
    """For one who sends statements one after another: its connection stays with it."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    async def send(self, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What the statement returns, as a transaction of its own. Raises StoreUnavailable."""
        connections = self._database.connections
        with translated():
            connection = await connections.resume(self)
            try:
                found = await self._database.send(connection, tenants, statement, values)
            except BaseException as error:
                await connections.take_back_after(connection, error)
                raise
            await connections.keep(self, connection)
            return found


class Database:
    """A pool of connections; every statement names the tenants it touches."""

    def __init__(self, connections: Connections, patience: float, url: str, session: Session) -> None:
        """``patience`` is how long to wait for a connection, in seconds; ``url`` is where the connections lead."""
        self.connections, self._patience, self.url, self._session = connections, patience, url, session

    def line(self) -> Line:
        """For somebody who sends one statement after another."""
        return Line(self)

    @asynccontextmanager
    async def _transaction(self, connection: PoolConnection) -> AsyncIterator[None]:
        """A transaction on that connection, committed when the block ends."""
        opening = self._session.opening
        if opening is None:
            async with connection.transaction():
                yield
            return
        await connection.execute(opening)
        yield  # after an error the transaction stays open until the connection is given back, which rolls it back
        if await connection.execute("COMMIT") != "COMMIT":
            raise StoreUnavailable("PostgreSQL rolled the transaction back: retry")

    async def _run(self, connection: PoolConnection, text: str, *values: object) -> Sequence[Row]:
        """What the one statement returns, as a transaction of its own.

        PostgreSQL begins and commits it in the same round trip. A pooler would hand the connection to somebody else between preparing the
        statement and running it, so that there it is told where the transaction begins and ends.
        """
        if self._session.pooler is Pooler.NONE:
            return await connection.fetch(text, *values)
        async with self._transaction(connection):
            return await connection.fetch(text, *values)

    async def send(
        self, connection: PoolConnection, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]
    ) -> Sequence[Row]:
        """What the statement returns on a connection that was lent, as a transaction of its own."""
        return await self._run(connection, statement.text, *statement.arguments({**values, "tenants": named(tenants)}))

    @asynccontextmanager
    async def begin(self, tenants: Sequence[Tenant], seconds: float | None = None) -> AsyncIterator[Transaction]:
        """A transaction that is committed when the block ends, and rolled back when it raises; ``seconds`` for what takes long by nature.

        A single statement needs none (``read``, ``write``, ``Line.send``).
        Raises StoreUnavailable when PostgreSQL is away; whether it committed is then unknown.
        """
        with translated():
            async with self.connections.lent() as connection, self._transaction(connection):
                if seconds is not None:
                    await connection.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
                    await connection.execute(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")
                transaction = Transaction(connection, named(tenants), seconds)
                await transaction.rows(_NAME_TENANTS, {})
                yield transaction

    async def read(self, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What one reading statement returns; it sees one snapshot. The statement must be behind its ``gate``."""
        with translated():
            async with self.connections.lent() as connection:
                return await self.send(connection, tenants, statement, values)

    async def _ask(self, text: str, *values: object) -> Any:
        """The first column of the first row of a statement that touches no tenant."""
        with translated():
            async with self.connections.lent() as connection:
                found = await self._run(connection, text, *values)
                return found[0][0] if found else None

    async def write(self, tenants: Iterable[Tenant], statement: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        """What one writing statement returns, as a transaction of its own. The statement must be behind its ``gate``."""
        return await self.read(tenants, statement, values)

    async def kek_id(self) -> str | None:
        """Which key-encryption key the tenants' keys are wrapped with; None before there was one."""
        found: str | None = await self._ask("SELECT kek_id FROM installation")
        return found

    async def record_kek_id(self, known: str | None, kek_id: str) -> bool:
        """Record ``kek_id`` in the place of ``known``; whether that was still what is recorded."""
        return bool(
            await self._ask("UPDATE installation SET kek_id = $2 WHERE kek_id IS NOT DISTINCT FROM $1 RETURNING true", known, kek_id)
        )

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[bool]:
        """Whether nobody else on this database is in a block of that name. Raises StoreUnavailable.

        On a connection of its own, since the block may last and the pool's are for calls. The lock is a transaction's, not a session's:
        behind a pooler that hands sessions on, it would stay with somebody else.
        """
        with translated(), admitted():
            connection = await asyncpg.connect(self.url, timeout=self._patience, command_timeout=self._patience, statement_cache_size=0)
        try:
            with translated():
                await connection.transaction().start()
                await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                mine = await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _number_of(name))
            yield bool(mine)
        finally:
            await connection.close(timeout=1.0)

    async def token_key(self) -> bytes:
        """The key that every process on this database signs page tokens with."""
        key: bytes = await self._ask("SELECT token_key FROM installation")
        return key

    async def schema_version(self) -> str | None:
        """The version that the last migration left; None before the first."""
        try:
            version: str | None = await self._ask("SELECT version_num FROM alembic_version")
        except asyncpg.UndefinedTableError:
            return None
        return version

    async def at_home(self) -> bool:
        """Whether the database is in the cluster that its positions are counted by."""
        with translated():
            async with self.connections.lent() as connection:
                query = "SELECT cluster_id = (SELECT system_identifier FROM pg_control_system()) FROM installation"
                return bool(await connection.fetchval(query))

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification, in a transaction of its own: one within a commit would put all commits in line (PERFORMANCE.md)."""
        await self._ask("SELECT pg_notify($1, $2)", channel, payload)

    async def bypasses_row_security(self) -> bool:
        """Whether the role that statements run as is beyond row level security."""
        return bool(await self._ask("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"))

    async def check(self, seconds: float) -> None:
        """Raises StoreUnavailable unless PostgreSQL answers in so many seconds."""
        with translated():
            async with asyncio.timeout(seconds), self.connections.lent() as connection:
                await connection.execute("SELECT 1")


def _number_of(name: str) -> int:
    """The number of the lock of that name."""
    return int.from_bytes(hashlib.sha256(f"flowledger {name}".encode()).digest()[:8], "big", signed=True)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the pool behaves; times in seconds."""

    smallest: int = 2
    largest: int = 10
    patience: float = 5.0
    session: Session = field(default_factory=Session)


@asynccontextmanager
async def connected(url: str, settings: PoolSettings) -> AsyncIterator[Database]:
    """The database behind ``url`` while the block lasts. Raises StoreUnavailable when it cannot be reached."""
    session = settings.session
    with translated(), admitted():
        pool = await asyncpg.create_pool(
            url,
            min_size=settings.smallest,
            max_size=settings.largest,
            connection_class=Connection,
            server_settings=dict(session.startup),
            command_timeout=session.statement_timeout + 1.0,  # for a server that has stopped answering at all
            timeout=settings.patience,
            max_inactive_connection_lifetime=300.0,
            max_queries=1_000_000,
            # The statements are the same for ever; a pooler's next connection does not know them.
            statement_cache_size=100 if session.pooler is Pooler.NONE else 0,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,  # of any size
        )
    connections = Connections(pool, settings.patience)
    try:
        yield Database(connections, settings.patience, url, session)
    finally:
        await connections.give_up_kept()
        try:
            await asyncio.wait_for(pool.close(), settings.patience)
        except TimeoutError:
            pool.terminate()
