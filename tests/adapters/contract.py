"""What every adapter owes the pool, as one suite that runs against every driver.

    class PsycopgHarness(Harness): ...

    class TestPsycopg(AdapterContract):
        @pytest.fixture
        def harness(self, postgresql): return PsycopgHarness(postgresql)

A harness says how things are done with its driver. What a driver cannot do at all stands in `lacks`,
with the reason: the tests that need it are skipped and say so. What a harness has forgotten fails.
"""

import gc
import os
import pickle
import signal
import socket
import stat
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import pytest
from servers import wait_until

import connpool.adapter
from connpool.adapter import Adapter, Fault, Verdict, adapter_for, adapter_for_url
from connpool.adapters.sockets import KEEPALIVE, USER_TIMEOUT, ready
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.reset import Part

OURS = str(Path(connpool.adapter.__file__).parent)
LIMIT = 10.0  # seconds for steps that are expected to succeed
SHORT = 0.5  # seconds for steps that are expected to run into their limit
SOON = 5.0  # seconds within which something "at once" has happened on a busy machine

FINISHED = (Verdict.BROKEN, Verdict.SPENT)  # what must be closed, or is
FULL = (Part.FULL,)


_numbers = count()


class Harness:
    """How the contract's tests do things with one driver, on one private database."""

    lacks: Mapping[str, str] = MappingProxyType({})
    """Abilities that the driver has not, with the reason: "fail", "leave_unread", "kill", "alive" (it
    does not show its socket), "slow", "black_hole", "bad_dials", "url", "around", "autocommit",
    "errors", "closed" (it does not show that a connection is closed), "alter" (it keeps no settings that
    can be compared), "full" (the adapter does not know `Part.FULL`), "credentials" (`connect` takes none),
    "idle_limit" (its server ends no idle session, or the adapter does not know when), "read_only" (the
    adapter cannot tell that its server takes no writes), "forget" (its connections cannot be cut off in a
    forked child), "forgotten" (the verdict cannot tell that this has been done), "keepalive" (no TCP)."""

    operational_error: type[Exception]
    gone: type[Exception] | tuple[type[Exception], ...] = Exception
    """What the driver raises on a connection that its server closed."""
    secret: str | None = None
    """A password that the adapter knows."""
    wrong: Mapping[str, Any] = MappingProxyType({"user": "nobody_at_all", "password": "ver:legt/0815"})
    """Credentials that the server refuses."""
    idle_limit: float | None = None
    """What the connections of `adapter()` have for an idle limit."""

    table = "connpool_contract"

    # -- adapters

    def adapter(self) -> Adapter[Any]:
        """Return a new adapter whose connections work, and see the same database as all others."""
        raise NotImplementedError

    def connect(self) -> Any:
        """Open a connection with the driver alone, fit for `around`."""
        raise NotImplementedError

    def url(self) -> str:
        raise NotImplementedError

    def adapter_for(self, first: Any) -> Adapter[Any]:
        """Return what is chosen for a connection of `connect`."""
        adapter = adapter_for(first, self.connect)
        assert adapter is not None
        return adapter

    def adapter_for_url(self) -> Adapter[Any]:
        return adapter_for_url(self.url())

    def kind(self, adapter: Adapter[Any]) -> type[Any]:
        return type(adapter)

    def bad_dials(self) -> Mapping[str, tuple[Adapter[Any], frozenset[Fault]]]:
        """Return adapters that cannot connect, and what their errors may be taken for."""
        raise NotImplementedError

    def black_hole(
        self,
    ) -> AbstractContextManager[tuple[Adapter[Any], Callable[[], object]]]:
        """Return an adapter whose connections can be cut off, and what swallows all packets."""
        raise NotImplementedError

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        """Return an adapter whose own credentials are refused, and credentials that are not."""
        raise NotImplementedError

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        """Return an adapter whose connections are ended when idle, and after how many seconds: about 1."""
        raise NotImplementedError

    def read_only(self) -> AbstractContextManager[object]:
        """Have the server refuse to write as long as this lasts, in open sessions, too.

        In those at the latest at the next statement but one, and not in a transaction already begun.
        """
        raise NotImplementedError

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        """Return an adapter whose user has set TCP options, and those, by their names in `socket`."""
        raise NotImplementedError

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of the connection's socket."""
        fileno: int = conn.fileno()
        return fileno

    # -- statements

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement and read its whole result."""
        cursor = conn.cursor()
        try:
            cursor.execute(statement)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            cursor.close()

    def create_table(self, conn: Any) -> None:
        self.run(conn, f"CREATE TABLE {self.table} (a INTEGER)")
        conn.commit()

    def insert(self, conn: Any, value: int) -> None:
        self.run(conn, f"INSERT INTO {self.table} VALUES ({value})")

    def values(self, conn: Any) -> list[int]:
        return [a for (a,) in self.run(conn, f"SELECT a FROM {self.table} ORDER BY a")]

    # -- states

    def set_autocommit(self, conn: Any) -> None:
        conn.autocommit = True

    def fail(self, conn: Any) -> None:
        """Make the open transaction fail, by a statement whose error is caught here."""
        raise NotImplementedError

    def begin_read_only(self, conn: Any) -> None:
        """Begin a transaction that is read-only by the borrower's own wish."""
        self.run(conn, "START TRANSACTION READ ONLY")

    def leave_unread(self, conn: Any) -> object:
        """Leave a result half read; return what keeps it so while it is referred to."""
        raise NotImplementedError

    def kill(self, conn: Any) -> None:
        """End the session at the server, and return when it has ended."""
        raise NotImplementedError

    def slow(self, conn: Any) -> None:
        """Execute a statement that takes a minute."""
        raise NotImplementedError

    # -- settings of the driver, and of the session

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        """Return what changes one driver-level setting each, by its name.

        All that `verdict` compares and `restore` puts back.  None of them opens a transaction, and with
        all of them together in force the connection can still write.
        """
        raise NotImplementedError

    def alter(self, conn: Any) -> None:
        """Change every driver-level setting."""
        for change in self.alterations().values():
            change(conn)

    def settings(self, conn: Any) -> object:
        """Read, without I/O, the settings that `alter` changes; equal if none has changed."""
        raise NotImplementedError

    def change_session(self, conn: Any) -> None:
        """Change what the server (or the database library) keeps for the session, and commit that.

        As many kinds of it as there are: variables, temporary tables, locks, prepared statements.
        """
        raise NotImplementedError

    def session(self, conn: Any) -> object:
        """Read what `change_session` changes; equal if nothing has changed.  It may open a transaction."""
        raise NotImplementedError


class Lent:
    """An adopted connection, with what belongs to it."""

    def __init__(self, adapter: Adapter[Any]) -> None:
        self.adapter = adapter
        self.conn = adapter.connect(LIMIT)
        try:
            self.baseline = adapter.adopt(self.conn)
        except BaseException:
            adapter.abort(self.conn)
            raise

    def adopt_again(self) -> None:
        """Take the settings of this moment for the baseline, as the pool does after on_connect."""
        self.baseline = self.adapter.adopt(self.conn)

    def verdict(self) -> Verdict:
        return self.adapter.verdict(self.conn, self.baseline)

    def reset(self, memory: object, parts: tuple[Part, ...] = FULL) -> None:
        """Do the parts, as the pool does it, and look at the verdict on the way."""
        token = self.adapter.send_reset(self.conn, self.baseline, memory, parts, LIMIT)
        if token is not None:
            assert self.verdict() is Verdict.BROKEN, "an answer is outstanding"
            self.adapter.read_reset(self.conn, token, LIMIT)

    def at_rest(self) -> bool:
        """Tell whether the verdict is what it must be after a commit or rollback."""
        if self.adapter.sees_transactions:
            return self.verdict() is Verdict.CLEAN
        return self.verdict() in (Verdict.CLEAN, Verdict.DIRTY)


def in_forked_child(do: Callable[[], object]) -> str:
    """Run a function in a forked child; return its traceback, or nothing if it came to its end.

    The child ends without the interpreter's own ending, which is pytest's.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Whoever forks with threads about is warned, and here nothing but that is to be tried.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(4 * int(SOON))
        try:
            do()
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text or ("" if status == 0 else f"the child ended with status {status}")


def is_socket(fileno: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fileno).st_mode)
    except OSError:
        return False  # closed


class AdapterContract:
    """Subclass it as `TestSomething`, with a fixture `harness`."""

    @pytest.fixture
    def harness(self) -> Harness:
        raise NotImplementedError

    @pytest.fixture
    def lend(self, harness: Harness) -> Iterator[Callable[..., Lent]]:
        """Provide a function that opens and adopts; everything is closed afterwards."""
        all_lent: list[Lent] = []

        def lend(adapter: Adapter[Any] | None = None) -> Lent:
            all_lent.append(Lent(adapter or harness.adapter()))
            return all_lent[-1]

        yield lend
        for lent in all_lent:
            lent.adapter.close(lent.conn, SOON)

    @pytest.fixture
    def lent(self, lend: Callable[..., Lent]) -> Lent:
        return lend()

    @pytest.fixture
    def table(self, harness: Harness, lend: Callable[..., Lent]) -> Callable[[], list[int]]:
        """Provide an empty table; the value is a function that reads what is committed."""
        other = lend(harness.adapter())
        harness.table += f"_{next(_numbers)}"  # the database is the whole class's
        harness.create_table(other.conn)
        other.adapter.rollback(other.conn, LIMIT)

        def committed() -> list[int]:
            try:
                return harness.values(other.conn)
            finally:
                other.adapter.rollback(other.conn, LIMIT)

        return committed

    @staticmethod
    def need(harness: Harness, ability: str) -> None:
        if ability in harness.lacks:
            pytest.skip(harness.lacks[ability])

    # -- the verdict

    def test_a_new_connection_is_clean(self, lent: Lent) -> None:
        assert lent.at_rest()

    def test_a_write_makes_it_dirty(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        harness.insert(lent.conn, 1)
        assert lent.verdict() is Verdict.DIRTY

    def test_commit_keeps_the_data_and_leaves_it_clean(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        harness.insert(lent.conn, 1)
        lent.adapter.commit(lent.conn)
        assert lent.at_rest()
        assert table() == [1]

    def test_rollback_discards_the_data_and_leaves_it_clean(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        harness.insert(lent.conn, 1)
        lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.at_rest()
        assert table() == []

    def test_commit_and_rollback_without_a_transaction_are_harmless(self, lent: Lent) -> None:
        lent.adapter.commit(lent.conn)
        lent.adapter.rollback(lent.conn, None)
        lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.at_rest()

    def test_an_explicit_transaction_is_dirty_and_can_be_committed(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        lent.adapter.begin(lent.conn)
        harness.insert(lent.conn, 1)
        assert lent.verdict() is Verdict.DIRTY
        lent.adapter.commit(lent.conn)
        assert lent.at_rest()
        assert table() == [1]

    @pytest.mark.parametrize("ending", ["commit", "rollback"])
    def test_an_explicit_transaction_holds_on_an_autocommit_connection(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], ending: str
    ) -> None:
        self.need(harness, "autocommit")
        harness.set_autocommit(lent.conn)
        lent.adopt_again()
        lent.adapter.begin(lent.conn)
        harness.insert(lent.conn, 1)
        assert lent.verdict() is Verdict.DIRTY
        if ending == "commit":
            lent.adapter.commit(lent.conn)
        else:
            lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.at_rest()
        assert table() == ([1] if ending == "commit" else [])

    @pytest.mark.parametrize("ending", ["commit", "rollback"])
    def test_a_transaction_begun_by_hand_on_an_autocommit_connection_is_ended(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], ending: str
    ) -> None:
        self.need(harness, "autocommit")
        harness.set_autocommit(lent.conn)
        lent.adopt_again()
        harness.run(lent.conn, "BEGIN")
        harness.insert(lent.conn, 1)
        assert lent.verdict() is Verdict.DIRTY
        if ending == "commit":
            lent.adapter.commit(lent.conn)
        else:
            lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.at_rest()
        assert table() == ([1] if ending == "commit" else [])

    def test_an_autocommit_connection_is_clean_between_statements(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "autocommit")
        harness.set_autocommit(lent.conn)
        lent.adopt_again()
        harness.insert(lent.conn, 1)
        assert lent.at_rest()
        lent.adapter.commit(lent.conn)
        assert lent.at_rest()
        assert table() == [1]

    def test_a_failed_transaction_is_seen_and_can_be_rolled_back(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "fail")
        harness.insert(lent.conn, 1)
        harness.fail(lent.conn)
        assert lent.verdict() is Verdict.FAILED
        lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.at_rest()
        assert table() == []

    def test_a_result_left_unread_is_not_clean_and_never_becomes_so_by_mistake(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "leave_unread")
        kept = harness.leave_unread(lent.conn)
        assert lent.verdict() is not Verdict.CLEAN
        if lent.verdict() not in FINISHED:
            try:
                lent.adapter.rollback(lent.conn, LIMIT)
            except Exception:
                return  # the pool closes it
            if lent.verdict() not in FINISHED:
                assert harness.run(lent.conn, "SELECT 4711") == [(4711,)]
        del kept

    @pytest.mark.parametrize("how", ["close", "abort"])
    def test_a_connection_that_the_adapter_has_closed_is_finished(
        self, harness: Harness, lent: Lent, how: str
    ) -> None:
        if how == "close":
            self.need(harness, "closed")
            lent.adapter.close(lent.conn, LIMIT)
        else:
            lent.adapter.abort(lent.conn)
        assert lent.verdict() in FINISHED

    def test_a_connection_that_its_borrower_has_closed_is_spent(self, harness: Harness, lent: Lent) -> None:
        self.need(harness, "closed")
        lent.conn.close()
        assert lent.verdict() is Verdict.SPENT

    def test_a_connection_that_its_borrower_has_altered_and_closed_is_spent(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "closed")
        self.need(harness, "alter")
        harness.alter(lent.conn)
        lent.conn.close()
        assert lent.verdict() is Verdict.SPENT

    def test_a_killed_connection_is_finished_once_the_driver_knows(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "kill")
        harness.kill(lent.conn)
        with pytest.raises(harness.gone):
            harness.run(lent.conn, "SELECT 1")
        if lent.verdict() not in FINISHED:
            assert not lent.adapter.sees_transactions
            with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
                lent.adapter.rollback(lent.conn, LIMIT)

    @pytest.mark.parametrize("begun", ["by the driver", "by the adapter", "by hand"])
    def test_a_killed_transaction_is_broken_and_never_spent(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], begun: str
    ) -> None:
        self.need(harness, "kill")
        if begun != "by the driver":
            self.need(harness, "autocommit")
            harness.set_autocommit(lent.conn)
            lent.adopt_again()
            if begun == "by hand":
                harness.run(lent.conn, "BEGIN")
            else:
                lent.adapter.begin(lent.conn)
        harness.insert(lent.conn, 1)
        harness.kill(lent.conn)
        with pytest.raises(harness.gone):
            harness.run(lent.conn, "SELECT 1")
        if lent.adapter.sees_transactions:
            assert lent.verdict() is Verdict.BROKEN
        else:
            assert lent.verdict() in (Verdict.DIRTY, Verdict.BROKEN)

    def test_the_verdict_never_raises(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]]
    ) -> None:
        adapter = harness.adapter()
        for spoil in (
            lambda lent: lent.conn.close(),
            lambda lent: adapter.abort(lent.conn),
            lambda lent: (lent.conn.close(), adapter.abort(lent.conn)),
            lambda lent: (adapter.abort(lent.conn), lent.conn.close()),
        ):
            lent = lend(adapter)
            spoil(lent)
            assert isinstance(lent.verdict(), Verdict)

    def test_the_verdict_is_one_python_frame_of_ours(self, lent: Lent) -> None:
        calls: list[str] = []

        def note(frame: Any, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(OURS):
                calls.append(frame.f_code.co_name)

        verdict, conn, baseline = lent.adapter.verdict, lent.conn, lent.baseline
        gc.disable()  # finalizers have frames, too
        sys.setprofile(note)
        try:
            verdict(conn, baseline)
        finally:
            sys.setprofile(None)
            gc.enable()
        assert calls == ["verdict"]

    # -- settings

    def test_every_setting_alone_makes_it_altered(self, harness: Harness, lend: Callable[..., Lent]) -> None:
        self.need(harness, "alter")
        adapter = harness.adapter()
        for what, change in harness.alterations().items():
            lent = lend(adapter)
            before = harness.settings(lent.conn)
            change(lent.conn)
            assert harness.settings(lent.conn) != before, what
            assert lent.verdict() is Verdict.ALTERED, what
            adapter.restore(lent.conn, lent.baseline, LIMIT)
            assert lent.verdict() is Verdict.CLEAN, what
            assert harness.settings(lent.conn) == before, what

    def test_restore_puts_all_settings_back(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "alter")
        before = harness.settings(lent.conn)
        for limit in (LIMIT, None):
            harness.alter(lent.conn)
            assert lent.verdict() is Verdict.ALTERED
            lent.adapter.restore(lent.conn, lent.baseline, limit)
            assert lent.verdict() is Verdict.CLEAN
            assert harness.settings(lent.conn) == before
        harness.insert(lent.conn, 1)  # autocommit is off again, at the server too
        lent.adapter.rollback(lent.conn, LIMIT)
        assert table() == []
        assert lent.verdict() is Verdict.CLEAN

    def test_restoring_what_is_clean_changes_nothing(self, harness: Harness, lent: Lent) -> None:
        self.need(harness, "alter")
        before = harness.settings(lent.conn)
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert lent.verdict() is Verdict.CLEAN
        assert harness.settings(lent.conn) == before

    def test_a_transaction_is_judged_before_the_settings(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "alter")
        harness.alter(lent.conn)
        lent.adapter.begin(lent.conn)
        assert lent.verdict() is Verdict.DIRTY
        lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.ALTERED
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert lent.verdict() is Verdict.CLEAN

    def test_adopting_again_what_is_clean_changes_nothing(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        first = lent.baseline
        for _ in range(2):
            lent.adopt_again()
            assert lent.at_rest()
        if "alter" not in harness.lacks:
            assert lent.adapter.verdict(lent.conn, first) is Verdict.CLEAN
        harness.insert(lent.conn, 1)
        assert lent.verdict() is Verdict.DIRTY
        lent.adapter.commit(lent.conn)
        assert table() == [1]
        assert lent.at_rest()

    def test_what_was_altered_before_the_second_adoption_is_the_baseline(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "alter")
        at_connect, first = harness.settings(lent.conn), lent.baseline
        harness.alter(lent.conn)
        lent.adopt_again()
        altered = harness.settings(lent.conn)
        assert altered != at_connect
        assert lent.verdict() is Verdict.CLEAN
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert harness.settings(lent.conn) == altered
        # The first baseline is a value of its own, which altering and adopting have not touched.
        assert lent.adapter.verdict(lent.conn, first) is Verdict.ALTERED
        lent.adapter.restore(lent.conn, first, LIMIT)
        assert harness.settings(lent.conn) == at_connect
        assert lent.verdict() is Verdict.ALTERED
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert lent.verdict() is Verdict.CLEAN
        assert harness.settings(lent.conn) == altered

    # -- resets

    STATES = ("clean", "altered", "dirty", "altered and dirty", "failed")

    @staticmethod
    def put(harness: Harness, lent: Lent, state: str) -> None:
        """Bring a connection into a state, with a write if a transaction is open in it."""
        if "altered" in state:
            harness.alter(lent.conn)
        if "dirty" in state:
            lent.adapter.begin(lent.conn)
            harness.insert(lent.conn, 1)
        elif state == "failed":
            harness.insert(lent.conn, 1)
            harness.fail(lent.conn)

    @staticmethod
    def session(harness: Harness, lent: Lent) -> object:
        """Read the session, without leaving a transaction open."""
        try:
            return harness.session(lent.conn)
        finally:
            lent.adapter.rollback(lent.conn, LIMIT)

    def test_the_parts_that_are_known_are_told(self, harness: Harness, lent: Lent) -> None:
        for parts in (harness.adapter().parts, lent.adapter.parts):
            assert set(parts) <= set(Part)
            assert Part.ROLLBACK not in parts, "it is a method of its own"
        assert (Part.FULL in lent.adapter.parts) is ("full" not in harness.lacks)

    @pytest.mark.parametrize("state", STATES)
    def test_a_full_reset_makes_it_what_it_was_at_connect(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], state: str
    ) -> None:
        self.need(harness, "full")
        for ability, needed in (("alter", "altered" in state), ("fail", state == "failed")):
            if needed:
                self.need(harness, ability)
        settings = None if "alter" in harness.lacks else harness.settings(lent.conn)
        memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
        assert lent.at_rest()
        at_connect = self.session(harness, lent)
        for _ in range(3):
            harness.change_session(lent.conn)
            assert self.session(harness, lent) != at_connect
            self.put(harness, lent, state)
            lent.reset(memory)
            assert lent.at_rest()
            assert lent.adapter.alive(lent.conn)
            assert self.session(harness, lent) == at_connect
            if settings is not None:
                assert harness.settings(lent.conn) == settings
        assert table() == []
        harness.insert(lent.conn, 2)
        lent.adapter.commit(lent.conn)
        assert table() == [2]
        assert lent.at_rest()

    def test_every_part_leaves_it_clean_and_usable(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "full")
        adapter = lend().adapter
        for parts in [*((part,) for part in adapter.parts), tuple(adapter.parts)]:
            lent = lend(adapter)
            memory = adapter.remember(lent.conn, parts, LIMIT)
            for state in ("clean", "dirty"):
                self.put(harness, lent, state)
                lent.reset(memory, parts)
                assert lent.at_rest(), (parts, state)
                assert harness.values(lent.conn) == [], (parts, state)
                adapter.rollback(lent.conn, LIMIT)
        assert table() == []

    @pytest.mark.parametrize("how", ["close", "abort"])
    def test_an_answer_that_nobody_reads_is_closed_with_the_connection(
        self, harness: Harness, lent: Lent, how: str
    ) -> None:
        self.need(harness, "full")
        memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
        lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
        began = monotonic()
        if how == "close":
            lent.adapter.close(lent.conn, LIMIT)
        else:
            lent.adapter.abort(lent.conn)
        assert monotonic() - began < SOON
        if "closed" not in harness.lacks or how == "abort":
            assert lent.verdict() in FINISHED

    @pytest.mark.parametrize("state", ["clean", "dirty"])
    def test_a_reset_keeps_its_limits_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]], state: str
    ) -> None:
        self.need(harness, "full")
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            memory = adapter.remember(lent.conn, FULL, LIMIT)
            self.put(harness, lent, state)
            swallow()
            began = monotonic()
            with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
                token = adapter.send_reset(lent.conn, lent.baseline, memory, FULL, SHORT)
                assert monotonic() - began < SOON
                began = monotonic()
                adapter.read_reset(lent.conn, token, SHORT)
            assert monotonic() - began < SOON
            assert adapter.fault(caught.value, dialling=False) is Fault.DEAD
            assert lent.verdict() in FINISHED
            began = monotonic()
            adapter.close(lent.conn, SHORT)
            assert monotonic() - began < SOON

    def test_restore_keeps_its_limit_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "alter")
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            harness.alter(lent.conn)
            swallow()
            began = monotonic()
            try:
                adapter.restore(lent.conn, lent.baseline, SHORT)
            except Exception:
                assert lent.verdict() is not Verdict.CLEAN  # it needed the server
            else:
                assert lent.verdict() is Verdict.CLEAN
            assert monotonic() - began < SOON

    @pytest.mark.parametrize("state", ["clean", "dirty"])
    def test_a_reset_raises_on_a_connection_that_its_server_closed(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], state: str
    ) -> None:
        self.need(harness, "full")
        self.need(harness, "kill")
        memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
        self.put(harness, lent, state)
        harness.kill(lent.conn)
        with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
            lent.reset(memory)
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
        assert lent.verdict() in FINISHED

    # -- alive and ping

    def test_an_idle_connection_is_alive_and_answers(self, lent: Lent) -> None:
        for limit in (LIMIT, None):
            assert lent.adapter.alive(lent.conn)
            lent.adapter.ping(lent.conn, limit)
            assert lent.at_rest()

    def test_a_connection_is_alive_after_use(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        harness.insert(lent.conn, 1)
        lent.adapter.commit(lent.conn)
        assert lent.adapter.alive(lent.conn)

    def test_a_connection_that_its_server_closed_is_not_alive(self, harness: Harness, lent: Lent) -> None:
        self.need(harness, "kill")
        self.need(harness, "alive")
        harness.kill(lent.conn)
        assert not lent.adapter.alive(lent.conn)

    def test_ping_raises_on_a_connection_that_its_server_closed(self, harness: Harness, lent: Lent) -> None:
        self.need(harness, "kill")
        harness.kill(lent.conn)
        with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
            lent.adapter.ping(lent.conn, LIMIT)
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD

    def test_ping_never_reconnects(self, harness: Harness, lent: Lent) -> None:
        lent.adapter.close(lent.conn, LIMIT)
        with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
            lent.adapter.ping(lent.conn, LIMIT)

    # -- limits

    @pytest.mark.parametrize("step", ["idle_limit", "writable"])
    def test_a_question_keeps_its_limit_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent], step: str
    ) -> None:
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            swallow()
            began = monotonic()
            try:
                getattr(adapter, step)(lent.conn, SHORT)
            except Exception as exc:
                assert adapter.fault(exc, dialling=False) is Fault.DEAD
                if "closed" not in harness.lacks:
                    assert lent.verdict() in FINISHED
            else:
                assert lent.at_rest(), "it needed no round trip, or else something is outstanding"
            assert monotonic() - began < SOON

    @pytest.mark.parametrize("state", ["at rest", "with an answer outstanding"])
    def test_abort_never_blocks_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent], state: str
    ) -> None:
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            if state != "at rest":
                self.need(harness, "full")
                memory = adapter.remember(lent.conn, FULL, LIMIT)
            swallow()
            if state != "at rest":
                try:
                    adapter.send_reset(lent.conn, lent.baseline, memory, FULL, SHORT)
                except Exception as exc:
                    assert adapter.fault(exc, dialling=False) is Fault.DEAD
            began = monotonic()
            adapter.abort(lent.conn)
            assert monotonic() - began < SHORT
            assert lent.verdict() in FINISHED

    @pytest.mark.parametrize("step", ["ping", "rollback"])
    def test_a_step_keeps_its_limit_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]], step: str
    ) -> None:
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            if step == "rollback":
                harness.insert(lent.conn, 1)
            swallow()
            began = monotonic()
            with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
                getattr(adapter, step)(lent.conn, SHORT)
            assert monotonic() - began < SOON
            assert adapter.fault(caught.value, dialling=False) is Fault.DEAD
            began = monotonic()
            adapter.close(lent.conn, SHORT)
            assert monotonic() - began < SOON

    def test_close_keeps_its_limit_on_a_black_holed_network(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            lent = lend(adapter)
            swallow()
            began = monotonic()
            adapter.close(lent.conn, SHORT)
            assert monotonic() - began < SOON

    def test_a_dial_keeps_its_limit_on_a_black_holed_network(self, harness: Harness) -> None:
        self.need(harness, "black_hole")
        with harness.black_hole() as (adapter, swallow):
            if not adapter.bounded:
                pytest.skip("the adapter does not promise it")
            swallow()
            began = monotonic()
            with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
                adapter.connect(1.0)
            assert monotonic() - began < 1.0 + SOON

    def test_the_kernel_finds_out_that_the_other_side_has_vanished(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "keepalive")
        expected = {**KEEPALIVE, "TCP_USER_TIMEOUT": USER_TIMEOUT}
        for _ in range(2):
            with socket.socket(fileno=os.dup(harness.fileno(lent.conn))) as twin:
                assert twin.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                for name, value in expected.items():
                    if hasattr(socket, name):
                        option = getattr(socket, name)
                        assert twin.getsockopt(socket.IPPROTO_TCP, option) == value, name
            lent.adopt_again()

    def test_what_the_user_has_set_of_tcp_stays(self, harness: Harness, lend: Callable[..., Lent]) -> None:
        self.need(harness, "keepalive")
        adapter, expected = harness.tuned()
        lent = lend(adapter)
        assert expected
        for _ in range(2):
            with socket.socket(fileno=os.dup(harness.fileno(lent.conn))) as twin:
                for name, value in expected.items():
                    level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
                    assert twin.getsockopt(level, getattr(socket, name)) == value, name
            lent.adopt_again()

    # -- credentials

    def test_credentials_stand_in_place_of_the_adapters_own_for_one_dial(self, harness: Harness) -> None:
        self.need(harness, "credentials")
        adapter, accepted = harness.refused()
        given = dict(accepted)
        for credentials in (None, {}, accepted, None, accepted):
            if credentials:
                conn = adapter.connect(LIMIT, credentials)
                adapter.adopt(conn)
                assert harness.run(conn, "SELECT 4711") == [(4711,)]
                adapter.close(conn, SOON)
            else:
                with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
                    adapter.connect(LIMIT, credentials)
                assert adapter.fault(caught.value, dialling=True) is Fault.AUTH
        assert accepted == given

    def test_refused_credentials_are_told_without_being_shown(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "credentials")
        adapter = harness.adapter()
        with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
            adapter.connect(LIMIT, harness.wrong)
        assert adapter.fault(caught.value, dialling=True) is Fault.AUTH
        shown = f"{adapter!r} {caught.value!r} {caught.value} {caught.value.__context__!r}"
        assert harness.wrong["password"] not in shown
        assert lend(adapter).at_rest(), "its own are as good as before"

    # -- the server's own limit

    def test_the_idle_limit_is_told_in_seconds_and_leaves_it_at_rest(
        self, harness: Harness, lent: Lent
    ) -> None:
        for limit in (LIMIT, None):
            assert lent.adapter.idle_limit(lent.conn, limit) == harness.idle_limit
            assert lent.at_rest()
            assert lent.adapter.alive(lent.conn)

    def test_the_server_ends_an_idle_session_when_the_idle_limit_says(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "idle_limit")
        adapter, seconds = harness.idle_limited()
        lent = lend(adapter)
        assert adapter.idle_limit(lent.conn, LIMIT) == seconds
        assert lent.at_rest()
        assert adapter.alive(lent.conn)
        if "alive" not in harness.lacks:
            began = monotonic()
            assert ready(harness.fileno(lent.conn), seconds + SOON)
            assert monotonic() - began > 0.8 * seconds
            # A loop in another thread may have read the server's last words, and not yet the end.
            wait_until(lambda: not adapter.alive(lent.conn), SOON)

    # -- whether it can write

    def test_asking_whether_it_can_write_does_not_disturb_the_transaction(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        assert lent.adapter.writable(lent.conn, None)
        assert lent.at_rest()
        harness.insert(lent.conn, 1)
        assert lent.adapter.writable(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.DIRTY
        lent.adapter.commit(lent.conn)
        assert table() == [1]
        assert lent.at_rest()

    def test_a_failed_transaction_can_still_write_as_far_as_anybody_knows(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "fail")
        harness.insert(lent.conn, 1)
        harness.fail(lent.conn)
        assert lent.adapter.writable(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.FAILED

    def test_a_read_only_transaction_of_the_borrower_is_no_read_only_server(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "read_only")
        harness.begin_read_only(lent.conn)
        assert lent.adapter.writable(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.DIRTY

    def test_a_read_only_server_is_told_by_new_connections_and_by_old_ones(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]]
    ) -> None:
        self.need(harness, "read_only")
        idle, dirty, failed = lend(), lend(), lend()
        harness.insert(dirty.conn, 1)
        with harness.read_only():
            new = lend()
            assert not new.adapter.writable(new.conn, LIMIT)
            assert new.at_rest()
            until = monotonic() + SOON
            for lent in (idle, dirty):
                while lent.adapter.writable(lent.conn, LIMIT):
                    assert monotonic() < until
            assert idle.at_rest()
            assert dirty.verdict() is Verdict.DIRTY
            if "fail" not in harness.lacks:
                harness.run(failed.conn, "SELECT 1")
                harness.fail(failed.conn)
                assert not failed.adapter.writable(failed.conn, LIMIT)
                assert failed.verdict() is Verdict.FAILED
            dirty.adapter.rollback(dirty.conn, LIMIT)
            assert dirty.at_rest()
        again = lend()
        assert again.adapter.writable(again.conn, LIMIT)

    # -- a forked child

    @pytest.mark.parametrize("state", ["at rest", "in a transaction"])
    def test_a_forked_child_forgets_a_connection_and_the_parent_keeps_it(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], state: str
    ) -> None:
        self.need(harness, "forget")
        adapter, conn = lent.adapter, lent.conn
        fileno = harness.fileno(conn)
        if state == "in a transaction":
            harness.insert(conn, 1)

        def child() -> None:
            adapter.forget(conn)
            assert not is_socket(fileno), "as long as it is held, nobody sees the parent die"
            if "forgotten" not in harness.lacks:
                assert lent.verdict() is not Verdict.CLEAN, "before anybody has tried to use it"
            began = monotonic()
            for _ in range(2):
                for use in (
                    lambda: harness.run(conn, "SELECT 1"),
                    conn.commit if adapter.sees_transactions else lambda: harness.run(conn, "SELECT 1"),
                    lambda: adapter.ping(conn, LIMIT),
                    lambda: adapter.rollback(conn, LIMIT),
                ):
                    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
                        use()
                assert not adapter.alive(conn)
                adapter.forget(conn)
            adapter.close(conn, LIMIT)
            adapter.abort(conn)
            adapter.forget(conn)
            conn.close()
            lent.conn = None
            gc.collect()
            assert monotonic() - began < SOON, "at once"

        assert in_forked_child(child) == ""
        if state == "in a transaction":
            assert lent.verdict() is Verdict.DIRTY
            adapter.commit(conn)
            assert table() == [1]
        assert adapter.alive(conn)
        for _ in range(2):
            assert harness.run(conn, "SELECT 4711") == [(4711,)]
            adapter.rollback(conn, LIMIT)
            assert lent.at_rest()

    def test_a_forked_child_that_ends_without_forgetting_harms_nobody(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "forget")
        adapter, conn = lent.adapter, lent.conn
        assert in_forked_child(lambda: None) == ""
        assert harness.run(conn, "SELECT 4711") == [(4711,)]
        adapter.rollback(conn, LIMIT)
        assert lent.at_rest()

    def test_a_forked_child_forgets_a_connection_that_a_thread_of_its_parent_is_in(
        self, harness: Harness, lent: Lent
    ) -> None:
        self.need(harness, "forget")
        self.need(harness, "slow")
        adapter, conn = lent.adapter, lent.conn
        raised: list[BaseException] = []

        def borrow() -> None:
            try:
                harness.slow(conn)
            except BaseException as exc:
                raised.append(exc)

        def child() -> None:
            began = monotonic()
            adapter.forget(conn)
            with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
                harness.run(conn, "SELECT 1")
            assert lent.verdict() is not Verdict.CLEAN
            adapter.close(conn, SHORT)
            adapter.abort(conn)
            assert monotonic() - began < SOON, "at once"

        thread = threading.Thread(target=borrow, daemon=True)
        thread.start()
        thread.join(0.2)
        try:
            assert in_forked_child(child) == ""
            thread.join(0.1)
            assert thread.is_alive(), raised
        finally:
            adapter.abort(conn)
            thread.join(SOON)

    def test_forgetting_what_is_closed_is_harmless(self, lent: Lent, lend: Callable[..., Lent]) -> None:
        closed, aborted = lent, lend(lent.adapter)
        closed.adapter.close(closed.conn, LIMIT)
        aborted.adapter.abort(aborted.conn)
        for gone in (closed, aborted):
            gone.adapter.forget(gone.conn)
            gone.adapter.forget(gone.conn)
            assert isinstance(gone.verdict(), Verdict)

    # -- close and abort

    def test_closing_twice_is_harmless(self, lent: Lent) -> None:
        lent.adapter.close(lent.conn, LIMIT)
        lent.adapter.close(lent.conn, None)

    def test_aborting_twice_and_after_close_is_harmless(self, lent: Lent, lend: Callable[..., Lent]) -> None:
        lent.adapter.abort(lent.conn)
        lent.adapter.abort(lent.conn)
        other = lend(lent.adapter)
        other.adapter.close(other.conn, LIMIT)
        other.adapter.abort(other.conn)

    def test_abort_in_another_thread_ends_a_call(self, harness: Harness, lent: Lent) -> None:
        self.need(harness, "slow")
        running = threading.Event()
        raised: list[BaseException] = []

        def borrow() -> None:
            running.set()
            try:
                harness.slow(lent.conn)
            except BaseException as exc:
                raised.append(exc)

        thread = threading.Thread(target=borrow, daemon=True)
        thread.start()
        assert running.wait(SOON)
        thread.join(0.2)
        assert thread.is_alive(), "the statement was to take a minute"
        began = monotonic()
        lent.adapter.abort(lent.conn)
        assert monotonic() - began < SOON / 2, "abort itself must not block"
        thread.join(SOON)
        assert not thread.is_alive()
        assert len(raised) == 1
        assert isinstance(raised[0], Exception)
        assert lent.verdict() in FINISHED

    # -- errors and faults

    PLAIN = (PoolTimeout, PoolOverloaded, PoolUnavailable, PoolClosed)

    @pytest.mark.parametrize("plain", PLAIN)
    def test_errors_are_the_drivers_too(self, harness: Harness, plain: type[PoolError]) -> None:
        self.need(harness, "errors")
        kind = harness.adapter().errors[plain]
        assert issubclass(kind, plain)
        assert issubclass(kind, harness.operational_error)
        error = kind("no connection within 5 s")
        assert str(error) == "no connection within 5 s"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert again.args == error.args

    def test_misuse_stays_plain(self, harness: Harness) -> None:
        # `except OperationalError: retry` must not catch a programming error.
        assert PoolMisuse not in harness.adapter().errors

    def test_a_statements_own_error_is_ordinary(self, harness: Harness, lent: Lent) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
            harness.run(lent.conn, "SELECT nothing FROM nowhere_at_all")
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.ORDINARY

    def test_an_error_that_is_no_drivers_is_ordinary(self, harness: Harness) -> None:
        assert harness.adapter().fault(ValueError("x"), dialling=False) is Fault.ORDINARY

    def test_failed_dials_are_told_apart(self, harness: Harness) -> None:
        self.need(harness, "bad_dials")
        for what, (adapter, allowed) in harness.bad_dials().items():
            with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever the driver has
                adapter.connect(LIMIT)
            assert adapter.fault(caught.value, dialling=True) in allowed, what
            if harness.secret:
                assert harness.secret not in f"{adapter!r} {caught.value}"

    # -- where adapters come from

    def test_the_driver_is_named_without_a_secret(self, harness: Harness, lent: Lent) -> None:
        assert lent.adapter.name
        if harness.secret:
            assert harness.secret not in f"{lent.adapter!r} {lent.adapter} {lent.baseline!r}"

    def test_the_drivers_connections_choose_this_adapter(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "around")
        first = harness.connect()
        try:
            adapter = harness.adapter_for(first)
        finally:
            first.close()
        assert harness.kind(adapter) is harness.kind(harness.adapter())
        assert not adapter.bounded
        lent = lend(adapter)
        assert lent.at_rest()
        lent.adapter.ping(lent.conn, LIMIT)

    def test_a_url_makes_an_adapter_that_keeps_its_limit(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        self.need(harness, "url")
        adapter = harness.adapter_for_url()
        assert harness.kind(adapter) is harness.kind(harness.adapter())
        assert adapter.bounded
        lent = lend(adapter)
        assert lent.at_rest()
        if harness.secret:
            assert harness.secret not in repr(adapter)
