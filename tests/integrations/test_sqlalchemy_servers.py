"""Core and ORM on a `ConnPool`, on PostgreSQL and MariaDB; what becomes of sessions that end."""

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from servers import MariaDB, PostgreSQL
from servers.process import wait_until
from sqlalchemy import event, exc, orm
from sqlalchemy.pool import QueuePool

import connpool
from connpool.integrations.sqlalchemy import ConnPool

pytestmark = pytest.mark.server


class Backend:
    """A database of its own, a driver, and engines on it that end with a census."""

    def __init__(self, server: PostgreSQL | MariaDB, url: str, driver: str) -> None:
        self.server = server
        self.url = sa.make_url(url).set(drivername=driver)
        self.driver = driver
        self.engines: list[sa.Engine] = []
        self.session = (
            "select pg_backend_pid()" if isinstance(server, PostgreSQL) else "select connection_id()"
        )

    def engine(self, **arguments: Any) -> sa.Engine:
        self.engines.append(sa.create_engine(self.url, **{"poolclass": ConnPool, **arguments}))
        return self.engines[-1]

    def census(self) -> set[int]:
        return {s.id for s in self.server.census() if s.database == self.url.database}

    def settle(self) -> None:
        """Compare what the server sees with what the pools say, and then with nothing."""
        pools = [engine.pool for engine in self.engines if isinstance(engine.pool, ConnPool)]
        assert wait_until(lambda: len(self.census()) == sum(pool.checkedin() for pool in pools), 5.0)
        assert all(pool.checkedout() == 0 for pool in pools)
        while self.engines:
            self.engines.pop().dispose()
        assert wait_until(lambda: not self.census(), 5.0)


def backend_for(request: pytest.FixtureRequest) -> Iterator[Backend]:
    driver: str = request.param
    if driver.startswith("postgresql"):
        server = request.getfixturevalue("postgresql")
        url = server.url_for(dbname=request.getfixturevalue("postgresql_database"))
    else:
        server = request.getfixturevalue("mariadb")
        url = server.url_for(database=request.getfixturevalue("mariadb_database"))
    yield Backend(server, url, driver)


backend = pytest.fixture(scope="class", params=["postgresql+psycopg", "mysql+pymysql"])(backend_for)


@pytest.fixture
def engine(backend: Backend) -> Iterator[sa.Engine]:
    engine = backend.engine(max_size=5)
    yield engine
    backend.settle()


# -- what an application does -------------------------------------------------------------------------


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(50), unique=True)
    books: orm.Mapped[list["Book"]] = orm.relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str] = orm.mapped_column(sa.String(50))
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


author = sa.inspect(Author).local_table


@pytest.fixture
def tables(engine: sa.Engine) -> Iterator[None]:
    Base.metadata.create_all(engine)
    yield
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("tables")
class TestCore:
    """SQL, transactions, results."""

    def test_tables_rows_and_reflection(self, engine: sa.Engine) -> None:
        with engine.begin() as conn:
            result = conn.execute(sa.insert(author).values(name="Ada"))
            assert result.inserted_primary_key is not None
            conn.execute(sa.insert(author), [{"name": f"n{n}"} for n in range(100)])
            conn.execute(sa.update(author).where(author.c.name == "Ada").values(name="Bea"))
            assert conn.execute(sa.delete(author).where(author.c.name == "n0")).rowcount == 1
        with engine.connect() as conn:
            assert conn.scalar(sa.select(sa.func.count()).select_from(author)) == 100
            assert conn.scalars(sa.select(author.c.name).where(author.c.name == "Bea")).all() == ["Bea"]
        assert {"author", "book"} <= set(sa.inspect(engine).get_table_names())

    def test_transactions_end_as_they_are_told(self, engine: sa.Engine) -> None:
        def names() -> list[str]:
            with engine.connect() as conn:
                return list(conn.scalars(sa.select(author.c.name).order_by(author.c.name)))

        with pytest.raises(exc.IntegrityError):
            with engine.begin() as conn:
                conn.execute(sa.insert(author).values(name="a"))
                conn.execute(sa.insert(author).values(name="a"))
        with engine.connect() as conn:  # never committed
            conn.execute(sa.insert(author).values(name="b"))
        assert names() == []
        with engine.begin() as conn:
            conn.execute(sa.insert(author).values(name="c"))
            with conn.begin_nested() as savepoint:
                conn.execute(sa.insert(author).values(name="d"))
                savepoint.rollback()
            with pytest.raises(exc.IntegrityError):
                with conn.begin_nested():
                    conn.execute(sa.insert(author).values(name="c"))
            conn.execute(sa.insert(author).values(name="e"))
        assert names() == ["c", "e"]

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete")
    @pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
    def test_streams_that_are_left_in_the_middle_trouble_nobody(self, engine: sa.Engine) -> None:
        with engine.begin() as conn:
            conn.execute(sa.insert(author), [{"name": f"n{n:04}"} for n in range(2000)])
        statement = sa.select(author.c.name).order_by(author.c.name)
        with engine.connect() as conn:
            options = conn.execution_options(stream_results=True, yield_per=50)
            assert sum(1 for _ in options.execute(statement)) == 2000
        with engine.connect() as conn:
            rows = conn.execution_options(stream_results=True, yield_per=50).execute(statement)
            assert next(rows)[0] == "n0000"
        raw = engine.raw_connection()
        cursor: Any = raw.cursor()
        cursor.execute("select name from author")
        assert cursor.fetchone()
        raw.close()
        for _ in range(3):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 42")) == 42

    def test_levels_of_isolation_last_as_long_as_they_should(self, engine: sa.Engine) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.insert(author).values(name="a"))
        with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
            assert conn.get_isolation_level() == "SERIALIZABLE"
        for _ in range(2):
            with engine.connect() as conn:
                assert conn.get_isolation_level() == conn.default_isolation_level
                conn.execute(sa.insert(author).values(name="b"))  # in a transaction, and rolled back
        with engine.connect() as conn:
            assert list(conn.scalars(sa.select(author.c.name))) == ["a"]


@pytest.mark.usefixtures("tables")
class TestORM:
    """Sessions and relationships."""

    def test_units_of_work_and_relationships(self, engine: sa.Engine) -> None:
        sessions = orm.sessionmaker(engine)
        with sessions.begin() as session:
            session.add(Author(name="Ada", books=[Book(title="A"), Book(title="B")]))
        with sessions() as session:
            (ada,) = session.scalars(sa.select(Author).options(orm.selectinload(Author.books)))
            assert [book.title for book in ada.books] == ["A", "B"]
            assert ada.books[0].author is ada
            ada.books.pop()
            session.commit()
            assert session.scalar(sa.select(sa.func.count(Book.id))) == 1
            session.delete(ada)
            session.flush()
            session.rollback()
        with sessions() as session:
            joined = sa.select(Author.name, Book.title).join(Author.books)
            assert session.execute(joined).all() == [("Ada", "A")]

    def test_a_failed_flush_leaves_a_session_that_goes_on(self, engine: sa.Engine) -> None:
        with orm.Session(engine) as session:
            session.add(Author(name="Ada"))
            session.commit()
            session.add(Author(name="Ada"))
            with pytest.raises(exc.IntegrityError):
                session.commit()
            session.rollback()
            with session.begin_nested():
                session.add(Author(name="Bea"))
            session.commit()
            assert len(session.scalars(sa.select(Author)).all()) == 2

    def test_threads_have_sessions_of_their_own(self, engine: sa.Engine) -> None:
        sessions = orm.scoped_session(orm.sessionmaker(engine))
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(5):
                    sessions.add(Author(name=f"{number}-{n}"))
                    sessions.commit()
                sessions.remove()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        with orm.Session(engine) as session:
            assert session.scalar(sa.select(sa.func.count(Author.id))) == 100


# -- what the pool does -------------------------------------------------------------------------------


def listen(engine: sa.Engine, heard: list[str]) -> None:
    for name in ("connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate", "detach"):
        event.listen(engine, name, lambda *_, name=name: heard.append(name))


class TestSessions:
    """Which session serves, how it is left, what happens when it ends."""

    def test_a_session_ended_by_its_server_costs_one_error_and_the_pool_is_replaced(
        self, backend: Backend, engine: sa.Engine
    ) -> None:
        conns = [engine.connect() for _ in range(3)]
        for conn in conns[1:]:
            conn.close()
        assert len(backend.census()) == 3
        backend.server.terminate_sessions(user=backend.server.user)
        with pytest.raises(exc.OperationalError) as caught:
            conns[0].execute(sa.text("select 1"))
        assert caught.value.connection_invalidated
        assert conns[0].invalidated
        conns[0].rollback()
        assert conns[0].scalar(sa.text("select 1")) == 1, "it has another one"
        conns[0].close()
        for _ in range(5):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1

    def test_idle_sessions_that_were_ended_are_noticed_without_any_error(self, backend: Backend) -> None:
        engine = backend.engine(max_size=3, probe_after=0)
        for conn in [engine.connect() for _ in range(3)]:
            conn.close()
        backend.server.terminate_sessions(user=backend.server.user)
        for _ in range(5):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1
        backend.settle()

    def test_a_pre_ping_is_one_round_trip_each_time(self, backend: Backend) -> None:
        engine = backend.engine(max_size=1, pool_pre_ping=True)
        pings = 0
        pool: Any = engine.pool
        with engine.connect():
            driver = pool._source.driver
        ping = driver.ping

        def counted(*args: Any) -> None:
            nonlocal pings
            pings += 1
            ping(*args)

        driver.ping = counted
        for _ in range(3):
            with engine.connect() as conn:
                conn.scalar(sa.text("select 1"))
        assert pings == 3
        backend.server.terminate_sessions(user=backend.server.user)
        with engine.connect() as conn:
            assert conn.scalar(sa.text("select 1")) == 1
        backend.settle()

    def test_nothing_is_said_where_nothing_is_to_be_rolled_back(self, backend: Backend) -> None:
        engine = backend.engine(max_size=1, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
        with engine.connect() as conn:
            conn.scalar(sa.text("select 1"))
        mark = backend.server.mark()
        for _ in range(3):
            with engine.connect() as conn:
                conn.scalar(sa.text("select 2"))
            raw = engine.raw_connection()
            raw.close()
        said = [s.text.lower() for s in backend.server.statements(mark)]
        assert said == ["select 2"] * 3
        backend.settle()

    def test_a_full_reset_leaves_nothing_of_a_session(self, backend: Backend) -> None:
        postgresql = isinstance(backend.server, PostgreSQL)
        setting = "set statement_timeout = 12345" if postgresql else "set session wait_timeout = 12345"
        question = "show statement_timeout" if postgresql else "select @@session.wait_timeout"
        heard: list[object] = []
        engine = backend.engine(max_size=1, reset="full", on_connect=heard.append)
        with engine.connect() as conn:
            before = conn.scalar(sa.text(question))
            session = conn.scalar(sa.text(backend.session))
            level = conn.get_isolation_level()
            conn.execute(sa.text("create temporary table leak (a int)"))
            conn.execute(sa.text(setting))
            conn.commit()
            assert conn.scalar(sa.text(question)) != before
        with engine.connect() as conn:
            assert conn.scalar(sa.text(backend.session)) == session
            assert conn.scalar(sa.text(question)) == before
            assert conn.get_isolation_level() == level
            with pytest.raises(exc.ProgrammingError):
                conn.execute(sa.text("select * from leak"))
        assert len(heard) == 3, "at connect, and after each of two resets"
        backend.settle()

    def test_an_isolation_level_of_the_engine_survives_a_full_reset(self, backend: Backend) -> None:
        engine = backend.engine(max_size=1, reset="full", isolation_level="SERIALIZABLE")
        for _ in range(2):
            with engine.connect() as conn:
                assert conn.get_isolation_level() == "SERIALIZABLE"
        backend.settle()

    def test_what_cannot_be_opened_is_an_operational_error(self, backend: Backend) -> None:
        for poolclass in (ConnPool, QueuePool):
            url = backend.url.set(username="nobody", password="wrong-secret")
            engine = sa.create_engine(url, poolclass=poolclass)
            with pytest.raises(exc.OperationalError, match="nobody") as caught:
                engine.connect()
            assert "wrong-secret" not in str(caught.value)
            engine.dispose()

    def test_a_server_that_comes_back_is_found_again(self, backend: Backend, engine: sa.Engine) -> None:
        for conn in [engine.connect() for _ in range(3)]:
            conn.close()
        backend.server.stop()
        with pytest.raises((exc.OperationalError, exc.TimeoutError)):
            with engine.connect() as conn:
                conn.scalar(sa.text("select 1"))
        backend.server.start()
        until = time.monotonic() + 5.0
        while True:
            try:
                with engine.connect() as conn:
                    assert conn.scalar(sa.text("select 1")) == 1
                break
            except exc.OperationalError:
                assert time.monotonic() < until
                time.sleep(0.05)
        for _ in range(5):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_has_sessions_of_its_own(self, backend: Backend, engine: sa.Engine) -> None:
        lent = engine.connect()
        with engine.connect() as conn:
            ours = conn.scalar(sa.text(backend.session))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with pytest.raises(exc.DBAPIError):  # it is the parent's
                    lent.execute(sa.text("select 1"))
                lent.close()
                with engine.connect() as conn:
                    text = json.dumps(conn.scalar(sa.text(backend.session)))
                engine.dispose()
            except BaseException as error:
                text = json.dumps(repr(error))
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:  # noqa: PTH123 -- a descriptor
            theirs = json.load(pipe)
        os.waitpid(pid, 0)
        assert isinstance(theirs, int)
        assert theirs != ours
        with engine.connect() as conn:
            assert conn.scalar(sa.text(backend.session)) == ours
        assert lent.scalar(sa.text("select 1")) == 1
        lent.close()

    def test_everybody_gets_a_fair_share(self, backend: Backend) -> None:
        engine = backend.engine(max_size=5, pool_timeout=30.0)
        served = [0] * 50
        stop = threading.Event()

        def work(number: int) -> None:
            while not stop.is_set():
                with engine.connect():
                    time.sleep(0.001)
                served[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        wait_until(lambda: min(served) >= 50, 20.0, "everybody is served fifty times")
        stop.set()
        for thread in threads:
            thread.join()
        assert max(served) / min(served) <= 1.2
        backend.settle()

    def test_events_come_as_with_a_queue_pool(self, backend: Backend) -> None:
        seen = []
        for poolclass in (ConnPool, QueuePool):
            engine = backend.engine(poolclass=poolclass, pool_size=2)
            heard: list[str] = []
            listen(engine, heard)
            with engine.connect() as conn:
                session = conn.scalar(sa.text(backend.session))
                if isinstance(backend.server, PostgreSQL):
                    backend.server.execute("select pg_terminate_backend(%s, 5000)", session)
                else:
                    backend.server.execute(f"kill {session}")
                with pytest.raises(exc.OperationalError):
                    conn.execute(sa.text("select 1"))
                conn.rollback()
                conn.scalar(sa.text("select 1"))
            engine.raw_connection().invalidate(soft=True)
            detached = engine.connect()
            detached.detach()
            detached.close()
            engine.dispose()
            seen.append(heard)
            backend.engines.clear()
        assert seen[0] == seen[1]
        assert wait_until(lambda: not backend.census(), 5.0)


# -- two phases ---------------------------------------------------------------------------------------


def commit_in_two_phases(backend: Backend) -> None:
    engine = backend.engine()
    numbers = sa.Table("number", sa.MetaData(), sa.Column("n", sa.Integer))
    numbers.create(engine)
    with engine.connect() as conn:
        for n, end in ((1, "commit"), (2, "rollback")):
            transaction = conn.begin_twophase()
            conn.execute(sa.insert(numbers).values(n=n))
            transaction.prepare()
            getattr(transaction, end)()
    with engine.connect() as conn:
        assert list(conn.scalars(sa.select(numbers.c.n))) == [1]
    numbers.drop(engine)
    backend.settle()


def test_two_phases_on_postgresql() -> None:
    with PostgreSQL(settings={"max_prepared_transactions": "5"}) as server:
        commit_in_two_phases(Backend(server, server.url, "postgresql+psycopg"))


def test_two_phases_on_mariadb(mariadb: MariaDB, mariadb_database: str) -> None:
    commit_in_two_phases(Backend(mariadb, mariadb.url_for(database=mariadb_database), "mysql+pymysql"))


# -- a driver that has no adapter of its own ----------------------------------------------------------

any_driver = pytest.fixture(scope="class", params=["postgresql+psycopg2"])(backend_for)


def test_a_driver_without_an_adapter_of_its_own_serves_as_well(any_driver: Backend) -> None:
    engine = any_driver.engine(max_size=2)
    with engine.begin() as conn:
        conn.execute(sa.text("create table t (a int)"))
    raw = engine.raw_connection()
    raw.cursor().execute("insert into t values (1)")
    raw.close()
    with engine.connect() as conn:
        assert conn.scalar(sa.text("select count(*) from t")) == 0
    any_driver.settle()
    engine = sa.create_engine(any_driver.url.set(username="nobody"), poolclass=ConnPool)
    with pytest.raises(exc.OperationalError, match="nobody") as caught:  # psycopg2's cannot be ours as well
        engine.connect()
    assert isinstance(caught.value.orig.__cause__, connpool.PoolUnavailable)  # type: ignore[union-attr]
    engine.dispose()
