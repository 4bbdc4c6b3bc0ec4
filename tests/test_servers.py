"""The servers and the fault proxy do what the other tests rely on, and leave nothing behind."""

import itertools
import os
import pwd
import random
import select
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped, unused-ignore] # as in servers/mariadb.py
import pytest
from servers import (
    FaultProxy,
    MariaDB,
    MissingServer,
    PgBouncer,
    PostgreSQL,
    Server,
    ServerError,
    free_port,
    install,
    process,
    requirements,
    system_binaries,
    wait_until,
    wheel_binaries,
)
from servers.postgresql import reachable_binaries
from servers.process import unprivileged_account

pytestmark = pytest.mark.server

TESTS = Path(__file__).parent
Proxies = Callable[[Server | tuple[str, int]], FaultProxy]


def connect(server: Server) -> Any:
    """Connect as the ordinary user, with the driver that fits, in autocommit."""
    if isinstance(server, MariaDB):
        return pymysql.connect(**server.params, autocommit=True)
    assert isinstance(server, PostgreSQL | PgBouncer)
    return psycopg.connect(**server.params, autocommit=True)


def query(connection: Any, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


# -- every kind of server


@pytest.fixture(scope="module", params=["wheel", "system", "mariadb", "pgbouncer"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Provide a server of each kind that a test may kill."""
    if request.param == "system" and system_binaries() is None:
        pytest.skip("the system has no PostgreSQL")
    made: Server
    match request.param:
        case "wheel":
            made = PostgreSQL()
        case "system":
            made = PostgreSQL(build="system")
        case "mariadb":
            made = MariaDB()
        case _:
            made = PgBouncer(request.getfixturevalue("postgresql_behind_pgbouncer").address)
    with made:
        yield made


def test_server_answers_its_ordinary_user(server: Server) -> None:
    with closing(connect(server)) as connection:
        assert query(connection, "select 6 * 7") == [(42,)]


def test_ordinary_user_can_create_tables(server: Server) -> None:
    with closing(connect(server)) as connection:
        query(connection, "create table kept (n int)")
        query(connection, "drop table kept")


def test_server_has_no_way_in_from_outside(server: Server) -> None:
    inode_lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = [line.split()[1] for line in inode_lines.splitlines() if line.split()[3] == "0A"]
    assert [a for a in listening if a.endswith(f":{server.port:04X}")] == [f"0100007F:{server.port:04X}"]


def test_server_does_not_run_as_root(server: Server) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_restarted_server_keeps_its_port(server: Server) -> None:
    port, pid = server.port, server.pid
    server.restart()
    assert server.port == port
    assert server.pid != pid
    with closing(connect(server)) as connection:
        assert query(connection, "select 1") == [(1,)]


def test_killed_server_leaves_no_process_and_comes_back_with_what_was_committed(server: Server) -> None:
    connection = connect(server)
    query(connection, "create table kept (n int)")
    query(connection, "insert into kept values (7)")
    port, family = server.port, [server.pid, *children(server.pid)]

    server.kill()
    assert not server.running
    assert [pid for pid in family if alive(pid)] == []
    with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
        query(connection, "select 1")
    connection.close()
    with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
        connect(server)

    server.start()
    assert server.port == port
    with closing(connect(server)) as connection:
        assert query(connection, "select * from kept") == [(7,)]
        query(connection, "drop table kept")


def test_start_of_a_running_server_changes_nothing(server: Server) -> None:
    pid = server.pid
    assert server.start() is server
    assert server.pid == pid


def test_stop_of_a_stopped_server_changes_nothing(server: Server) -> None:
    server.stop()
    server.stop()
    server.kill()
    assert not server.running
    server.start()


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB])
def test_closed_server_leaves_no_process_and_no_directory(kind: Callable[[], Server]) -> None:
    with kind() as server:
        directory, family = server.directory, [server.pid, *children(server.pid)]
        with closing(connect(server)):  # does not hold the server back
            server.close()
    assert not directory.exists()
    assert [pid for pid in family if alive(pid)] == []
    with pytest.raises(ServerError, match="has not been started, or has been closed"):
        _ = server.directory


def test_failed_start_shows_the_log_and_leaves_nothing() -> None:
    server = PostgreSQL(settings={"no_such_setting": "1"})
    with pytest.raises(ServerError, match=r'unrecognized configuration parameter "no_such'):
        server.start()
    assert not server.running
    assert server not in process._started.values()


def test_taken_port_is_left_to_its_owner(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([postgresql.port, free_port()])
    monkeypatch.setattr(process, "free_port", lambda: next(ports))
    with PostgreSQL() as other:
        assert other.port != postgresql.port
        with connect(other) as connection:
            assert connection.info.port == other.port


# -- looking in, and killing sessions


@pytest.fixture(params=["postgresql", "system_postgresql", "mariadb"])
def database_server(request: pytest.FixtureRequest) -> PostgreSQL | MariaDB:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, PostgreSQL | MariaDB)
    return found


def leave_alone(server: PostgreSQL | MariaDB) -> None:
    """End what other tests have left: a cancelled statement may go on for a while."""
    server.terminate_sessions()
    wait_until(lambda: not server.census())


def test_census_sees_exactly_the_sessions_of_others(database_server: PostgreSQL | MariaDB) -> None:
    leave_alone(database_server)
    assert database_server.census() == []
    with closing(connect(database_server)) as connection:
        query(connection, "select 1")
        (session,) = database_server.census()
        assert (session.user, session.database) == ("app", "app")
        assert session.state in {"idle", "Sleep"}
        assert database_server.census(user="app") == [session]
        assert database_server.census(user="nobody") == []
    wait_until(lambda: not database_server.census())


def test_terminated_sessions_are_dead_and_counted(database_server: PostgreSQL | MariaDB) -> None:
    leave_alone(database_server)
    connections = [connect(database_server) for _ in range(3)]
    assert database_server.terminate_sessions() == 3
    assert database_server.census() == []
    for connection in connections:
        with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
            query(connection, "select 1")
        connection.close()
    assert database_server.terminate_sessions() == 0


def test_sessions_are_chosen_by_application_name(postgresql: PostgreSQL) -> None:
    with (
        psycopg.connect(**postgresql.params, application_name="one") as one,
        psycopg.connect(**postgresql.params, application_name="two"),
    ):
        (session,) = postgresql.census(application_name="one")
        assert session.id == one.info.backend_pid
        assert postgresql.terminate_sessions(application_name="one") == 1
        assert [s.application_name for s in postgresql.census()] == ["two"]
    wait_until(lambda: not postgresql.census())


def test_statements_since_a_mark_are_those_of_others(database_server: PostgreSQL | MariaDB) -> None:
    with closing(connect(database_server)) as connection:
        query(connection, "select 'before'")
        mark = database_server.mark()
        query(connection, "select\n  'after',\n\t'tab'")
        database_server.execute("select 'control'")
        (statement,) = database_server.statements(mark)
    assert statement.text == "select\n  'after',\n\t'tab'"
    assert statement.kind in {"statement", "Query"}


def test_extended_protocol_is_in_the_statement_log(postgresql: PostgreSQL) -> None:
    with closing(connect(postgresql)) as connection:
        mark = postgresql.mark()
        connection.execute("select %s::int", [1])
        (statement,) = postgresql.statements(mark)
        assert (statement.kind, statement.text) == ("execute <unnamed>", "select $1::int")
        assert statement.session == connection.info.backend_pid


def test_statements_without_a_log_are_refused() -> None:
    with pytest.raises(ValueError, match="log_statements=True"):
        PostgreSQL().statements()
    with pytest.raises(ValueError, match="log_statements=True"):
        MariaDB().statements()


def test_each_database_is_new_and_dropped(
    postgresql: PostgreSQL, postgresql_database: str, mariadb: MariaDB, mariadb_database: str
) -> None:
    with postgresql.database() as other, psycopg.connect(postgresql.url_for(dbname=other)) as left:
        assert other != postgresql_database
        left.execute("create table t (n int)")  # an open transaction does not keep the database
    assert postgresql.execute("select 1 from pg_database where datname = %s", other) == []

    with mariadb.database() as other:
        assert other != mariadb_database
        with closing(pymysql.connect(**mariadb.params_for(database=other))) as connection:
            query(connection, "create table t (n int)")
    assert mariadb.execute("show databases like %s", other) == []


def test_url_and_dsn_reach_the_server(postgresql: PostgreSQL, pgbouncer: PgBouncer) -> None:
    for conninfo in (postgresql.url, postgresql.dsn, pgbouncer.url):
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("select current_user, current_database()").fetchone() == (
                "app",
                "app",
            )


# -- options


def test_full_server_still_answers_its_superuser() -> None:
    with PostgreSQL(max_connections=5) as server:
        held = [connect(server), connect(server)]  # and 3 are reserved
        with pytest.raises(psycopg.OperationalError, match="remaining connection slots"):
            connect(server)
        assert len(server.census()) == 2
        for connection in held:
            connection.close()


def test_mariadb_options_arrive() -> None:
    settings = {"lower-case-table-names": "1"}
    with MariaDB(max_connections=10, wait_timeout=77, settings=settings) as server:
        rows = server.execute(
            "select @@max_connections, @@global.wait_timeout, @@global.interactive_timeout,"
            " @@lower_case_table_names"
        )
        assert rows == [(10, 77, 77, 1)]
        held = [connect(server) for _ in range(10)]
        with pytest.raises(pymysql.OperationalError, match="Too many connections"):
            connect(server)
        assert len(server.census()) == 10
        for connection in held:
            connection.close()


def test_system_postgresql_serves_tls(system_postgresql: PostgreSQL) -> None:
    with connect(system_postgresql) as connection:
        statement = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        assert query(connection, statement) == [(True,)]
    assert "sslmode=verify-full" in system_postgresql.url


def test_mariadb_serves_tls() -> None:
    with MariaDB(tls=True) as server, closing(connect(server)) as connection:
        assert query(connection, "show status like 'Ssl_version'")[0][1].startswith("TLS")


def test_wheel_says_that_it_has_no_tls() -> None:
    with pytest.raises(ServerError, match="SSL is not supported by this build"):
        PostgreSQL(tls=True).start()


def test_pgbouncer_lends_one_server_connection_to_many_clients(postgresql: PostgreSQL) -> None:
    with PgBouncer(postgresql.address, pool_mode="transaction", default_pool_size=1) as bouncer:
        with closing(connect(bouncer)) as one, closing(connect(bouncer)) as two:
            pid = "select pg_backend_pid()"
            assert query(one, pid) == query(two, pid)
            assert len(bouncer.census()) == 2
    wait_until(lambda: not postgresql.census())


def test_pgbouncer_in_session_mode_keeps_a_server_connection(postgresql: PostgreSQL) -> None:
    with PgBouncer(postgresql.address, pool_mode="session") as bouncer:
        with closing(connect(bouncer)) as one, closing(connect(bouncer)) as two:
            pid = "select pg_backend_pid()"
            assert query(one, pid) != query(two, pid)
    wait_until(lambda: not postgresql.census())


# -- what is missing


def test_missing_program_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_program", lambda name: None)
    with pytest.raises(MissingServer) as raised:
        install.require("pgbouncer", may_install=False)
    assert str(raised.value) == (
        "pgbouncer is not installed. On Debian or Ubuntu run: sudo apt-get update &&"
        " sudo apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300"
        " mariadb-client mariadb-client-core mariadb-server-core openssl pgbouncer"
    )


def test_missing_program_is_installed_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here: set[str] = {"openssl"}
    installed: list[list[str]] = []

    def pretend(packages: list[str]) -> None:
        installed.append(packages)
        here.update(install.PACKAGES)

    monkeypatch.setattr(install, "find_program", lambda n: Path("/bin", n) if n in here else None)
    monkeypatch.setattr(install, "install", pretend)
    assert install.require("mariadbd", may_install=True) == Path("/bin/mariadbd")
    assert installed == [["mariadb-client", "mariadb-client-core", "mariadb-server-core", "pgbouncer"]]


def test_installation_leaves_no_service_running() -> None:
    commands: list[list[str]] = []
    install.install(["pgbouncer"], run=lambda command: commands.append(list(command)))
    assert [command[:2] for command in commands[:2]] == [
        ["apt-get", "update"],
        ["apt-get", "install"],
    ]
    assert commands[2:] in ([["service", "pgbouncer", "stop"]], [])  # without `service` no service


def test_requirements_are_the_programs_that_have_a_package() -> None:
    assert set(requirements()) == set(install.PACKAGES)


def test_newest_system_postgresql_is_found(tmp_path: Path) -> None:
    assert system_binaries(tmp_path) is None
    for version in ("9.6", "9", "15", "16"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "postgres").touch()
    (tmp_path / "17" / "bin").mkdir(parents=True)  # clients only
    assert system_binaries(tmp_path) == tmp_path / "16" / "bin"


def test_wheel_in_a_closed_directory_is_copied_for_the_account(tmp_path: Path) -> None:
    account = unprivileged_account()
    package = wheel_binaries().parents[1]
    closed = tmp_path / "closed"
    shutil.copytree(package.with_name(package.name + ".libs"), closed / f"{package.name}.libs")
    shutil.copytree(package / "pginstall", closed / package.name / "pginstall")
    binaries = closed / package.name / "pginstall" / "bin"
    closed.chmod(0o700)

    if account is None:  # then we are the account, and nothing is closed to us
        assert reachable_binaries(binaries, None, tmp_path) == binaries
        return
    with PostgreSQL() as server:  # for a directory that the account can reach
        copied = reachable_binaries(binaries, account, server.directory / "copy")
        assert copied.is_relative_to(server.directory)
        done = subprocess.run(
            [copied / "initdb", "--version"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=True,
        )
        assert b"PostgreSQL" in done.stdout


def test_servers_run_under_an_account_that_owns_nothing() -> None:
    account = unprivileged_account()
    assert (account == pwd.getpwnam("nobody")) if os.geteuid() == 0 else account is None


# -- however the process ends

ENDINGS = {
    "SIGINT": "signal.raise_signal(signal.SIGINT)",
    "SIGTERM": "signal.raise_signal(signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "exception": "raise RuntimeError",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "killed server": "server.kill()",
}


def environment() -> dict[str, str]:
    """Return an environment in which `servers` can be imported."""
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def run_script(body: str) -> list[str]:
    """Run a Python program, and return the lines that it printed."""
    head = """
import os, signal, sys
from servers import MariaDB, PgBouncer, PostgreSQL
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(body)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_outlives_the_process_that_started_it(ending: str) -> None:
    pid, directory, segment = run_script(
        f"""
        server = PostgreSQL().start()
        segment = (server.directory / "data/postmaster.pid").read_text().split()[-2]
        print(server.pid, server.directory, segment, sep="\\n", flush=True)
        {ENDINGS[ending]}
        """
    )
    wait_until(lambda: not alive(int(pid)), what="the server ended")
    wait_until(lambda: not Path(directory).exists(), what="its directory was removed")
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    assert segment not in [line.split()[1] for line in segments]


@pytest.mark.parametrize("ending", ["SIGINT", "SIGKILL"])
def test_all_kinds_end_together(ending: str) -> None:
    lines = run_script(
        f"""
        postgresql = PostgreSQL().start()
        for server in (postgresql, PgBouncer(postgresql.address).start(), MariaDB().start()):
            print(server.pid, server.directory, flush=True)
        {ENDINGS[ending]}
        """
    )
    assert len(lines) == 3
    pids, directories = zip(*(line.split() for line in lines), strict=True)
    wait_until(lambda: not any(alive(int(pid)) for pid in pids), what="the servers ended")
    wait_until(lambda: not any(Path(path).exists() for path in directories), what="data removed")


def test_nothing_outlives_a_process_that_dies_while_preparing() -> None:
    (directory,) = run_script(
        """
        import threading
        from servers import wait_until

        server = MariaDB()

        def die_in_the_middle():
            wait_until(lambda: server._directory and (server._directory / "data/mysql").exists())
            print(server.directory, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=die_in_the_middle).start()
        server.start()
        """
    )
    wait_until(lambda: not Path(directory).exists(), what="its directory was removed")
    assert [pid for pid in all_processes() if directory in command_line(pid)] == []


def test_server_outlives_the_forked_children_of_its_owner() -> None:
    alive_after_child, alive_at_end = run_script(
        """
        server = PostgreSQL().start()
        if os.fork() == 0:
            sys.exit()  # with all that runs at exit
        os.wait()
        print(server.running)
        print(server.execute("select 1") == [(1,)])
        """
    )
    assert (alive_after_child, alive_at_end) == ("True", "True")


def test_server_started_by_a_thread_outlives_the_thread() -> None:
    server = PostgreSQL()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:
        assert server.execute("select 1") == [(1,)]


def test_every_kind_is_printed_until_ctrl_c() -> None:
    command = [sys.executable, "-W", "error", "-m", "servers"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shown:
        assert shown.stdout is not None
        try:
            lines = list(itertools.takewhile(lambda line: "Ctrl-C" not in line, shown.stdout))
            os.killpg(shown.pid, signal.SIGINT)  # to all in the foreground, as a terminal does
            assert shown.wait(20) == 0
        finally:
            shown.kill()
    pids = [int(line.split("pid ")[1].split()[0]) for line in lines if "pid " in line]
    assert len(pids) >= 3
    assert [pid for pid in pids if alive(pid)] == []


# -- waiting


def test_wait_until_returns_the_first_true_value() -> None:
    values = iter([0, "", "here"])
    assert wait_until(lambda: next(values)) == "here"


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: the moon falls"):
        wait_until(lambda: False, timeout=0.01, what="the moon falls")


# -- the fault proxy, with plain sockets


class Echo(socketserver.ThreadingTCPServer):
    """Sends its name, then everything that it receives; counts its connections."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.open = 0
        self.received = 0
        super().__init__(("127.0.0.1", 0), EchoHandler)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", int(self.server_address[1]))

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: connections are reset on purpose here."""


class EchoHandler(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        self.server.open += 1
        try:
            self.request.sendall(self.server.name)
            while data := self.request.recv(65_536):
                self.server.received += len(data)
                self.request.sendall(data)
        finally:
            self.server.open -= 1


def serve_echo(name: bytes) -> Iterator[Echo]:
    with Echo(name) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    yield from serve_echo(b"A")


@pytest.fixture
def other_echo() -> Iterator[Echo]:
    yield from serve_echo(b"B")


@pytest.fixture
def proxy(echo: Echo, fault_proxy: Proxies) -> FaultProxy:
    return fault_proxy(echo.address)


@pytest.fixture
def dial(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    """Provide a function that opens a socket to the proxy, closed after the test."""
    opened: list[socket.socket] = []

    def make() -> socket.socket:
        opened.append(socket.create_connection(proxy.address, timeout=10))
        return opened[-1]

    yield make
    for sock in opened:
        sock.close()


Dial = Callable[[], socket.socket]


def silent(sock: socket.socket, seconds: float = 0.1) -> bool:
    """Tell whether nothing arrives, neither bytes nor an end."""
    return not select.select([sock], [], [], seconds)[0]


def receive(sock: socket.socket, count: int) -> bytes:
    """Return `count` bytes, or fewer if the other side ends before."""
    data = bytearray()
    while len(data) < count and (chunk := sock.recv(min(count - len(data), 65_536))):
        data += chunk
    return bytes(data)


def test_proxy_passes_bytes_both_ways(dial: Dial) -> None:
    client = dial()
    client.sendall(b"hello")
    assert receive(client, 6) == b"Ahello"


def test_proxy_passes_a_half_close_and_then_the_end(dial: Dial, proxy: FaultProxy) -> None:
    client = dial()
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 100) == b"Ahello"
    wait_until(lambda: proxy.open_connections == 0)


def test_proxy_passes_a_reset(fault_proxy: Proxies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        proxy = fault_proxy(upstream.getsockname())
        with socket.create_connection(proxy.address, timeout=10) as client:
            served, _ = upstream.accept()
            served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            served.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert proxy.open_connections == 0


def test_black_hole_stalls_an_old_connection_which_then_goes_on(
    dial: Dial, echo: Echo, proxy: FaultProxy
) -> None:
    client = dial()
    assert receive(client, 1) == b"A"
    proxy.black_hole()
    client.sendall(b"lost?")
    assert silent(client)
    assert echo.received == 0
    proxy.pass_through()
    assert receive(client, 5) == b"lost?"


def test_black_hole_accepts_a_new_connection_which_then_goes_on(
    dial: Dial, echo: Echo, proxy: FaultProxy
) -> None:
    proxy.black_hole()
    client = dial()
    client.sendall(b"hello")
    assert silent(client)
    assert (proxy.accepted, proxy.open_connections, echo.open) == (1, 1, 0)
    proxy.pass_through()
    assert receive(client, 6) == b"Ahello"


def test_black_hole_swallows_the_end_of_a_client(dial: Dial, echo: Echo, proxy: FaultProxy) -> None:
    client = dial()
    assert receive(client, 1) == b"A"
    proxy.black_hole()
    client.close()
    assert proxy.open_connections == 1
    assert echo.open == 1
    proxy.pass_through()
    wait_until(lambda: (echo.open, proxy.open_connections) == (0, 0))


def test_fin_ends_old_connections_in_order(dial: Dial, echo: Echo, proxy: FaultProxy) -> None:
    clients = [dial(), dial()]
    assert proxy.send_fin() == 2
    for client in clients:
        assert receive(client, 100) in {b"", b"A"}
    assert proxy.open_connections == 0
    wait_until(lambda: echo.open == 0)
    assert receive(dial(), 1) == b"A"  # and new ones are served


def test_fin_stays_a_fin_with_unread_bytes(dial: Dial, proxy: FaultProxy) -> None:
    client = dial()
    assert receive(client, 1) == b"A"
    proxy.black_hole()
    client.sendall(b"unread by the proxy")
    proxy.send_fin()
    assert client.recv(1) == b""
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_rst_resets_old_connections(dial: Dial, echo: Echo, proxy: FaultProxy) -> None:
    client = dial()
    assert receive(client, 1) == b"A"
    assert proxy.send_rst() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: echo.open == 0)
    assert receive(dial(), 1) == b"A"


def test_rst_reaches_a_connection_in_a_black_hole(dial: Dial, proxy: FaultProxy) -> None:
    proxy.black_hole()
    client = dial()
    proxy.send_rst()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_refusing_proxy_keeps_old_connections_and_its_port(dial: Dial, proxy: FaultProxy) -> None:
    client, port = dial(), proxy.port
    assert receive(client, 1) == b"A"
    proxy.refuse()
    proxy.refuse()
    for _ in range(100):
        with pytest.raises(ConnectionRefusedError):
            dial()
    client.sendall(b"still here")
    assert receive(client, 10) == b"still here"
    proxy.pass_through()
    assert proxy.port == port
    assert receive(dial(), 1) == b"A"
    assert proxy.accepted == 2


def test_delay_holds_back_each_direction(dial: Dial, proxy: FaultProxy) -> None:
    client = dial()
    assert receive(client, 1) == b"A"
    proxy.delay(0.1)
    began = time.monotonic()
    client.sendall(b"hello")
    assert receive(client, 5) == b"hello"
    assert 0.2 <= time.monotonic() - began < 2
    proxy.delay(30)
    client.sendall(b"hello")
    assert silent(client)
    proxy.pass_through()  # also for what was held back
    assert receive(client, 5) == b"hello"


def test_delay_holds_back_the_end_behind_the_bytes(dial: Dial, proxy: FaultProxy) -> None:
    proxy.delay(0.05)
    client = dial()
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 100) == b"Ahello"


def test_switched_proxy_leads_new_connections_elsewhere(
    dial: Dial, other_echo: Echo, proxy: FaultProxy
) -> None:
    old = dial()
    assert receive(old, 1) == b"A"
    proxy.switch(other_echo.address)
    assert receive(dial(), 1) == b"B"
    old.sendall(b"old")
    assert receive(old, 3) == b"old"


def test_proxy_without_an_upstream_ends_its_clients(fault_proxy: Proxies) -> None:
    proxy = fault_proxy(("127.0.0.1", free_port()))
    with socket.create_connection(proxy.address, timeout=10) as client:
        assert client.recv(1) == b""
    assert (proxy.accepted, proxy.open_connections) == (1, 0)


def test_bytes_keep_their_order_when_every_buffer_is_full(dial: Dial) -> None:
    client = dial()
    client.setblocking(False)
    sent = bytearray()
    while select.select([], [client], [], 0.2)[1]:  # nobody reads, so the way back fills up as well
        chunk = random.randbytes(65_536)
        sent += chunk[: client.send(chunk)]
    client.setblocking(True)
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 2**30) == b"A" + sent


def test_no_byte_is_lost_or_swapped_while_behaviours_change(dial: Dial, proxy: FaultProxy) -> None:
    client = dial()
    sent = b"A" + bytes(range(251)) * 120_000  # 30 MB, more than all buffers on the way
    received = bytearray()

    def receive_all() -> None:
        while chunk := client.recv(65_536):
            received.extend(chunk)

    def send_all() -> None:
        client.sendall(sent[1:])
        client.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=target) for target in (receive_all, send_all)]
    for thread in threads:
        thread.start()
    while threads[0].is_alive():
        proxy.black_hole()
        threads[0].join(0.005)
        proxy.delay(0.002)
        threads[0].join(0.02)
        proxy.pass_through()
        threads[0].join(0.01)
    threads[1].join()
    assert received == sent


def test_idle_proxy_does_not_poll(dial: Dial, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, closed = dial(), dial()
    assert receive(stalled, 1) == receive(closed, 1) == b"A"
    rounds = 0
    select_once = proxy._selector.select

    def count(timeout: float | None = None) -> Any:
        nonlocal rounds
        rounds += 1
        return select_once(timeout)

    monkeypatch.setattr(proxy._selector, "select", count)
    proxy.delay(30)
    stalled.sendall(b"later")
    assert silent(stalled, 0.2)
    proxy.black_hole()
    closed.close()
    assert silent(stalled, 0.2)
    assert 0 < rounds < 20


def test_closed_proxy_leaves_no_thread_and_no_connection(echo: Echo) -> None:
    before = threading.active_count()
    with FaultProxy(echo.address) as proxy:
        client = socket.create_connection(proxy.address, timeout=10)
        assert receive(client, 1) == b"A"
        proxy.black_hole()
    assert client.recv(1) == b""
    client.close()
    wait_until(lambda: threading.active_count() == before)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address)
    with pytest.raises(ServerError, match="not running"):
        proxy.pass_through()
    proxy.close()


# -- the fault proxy, with a database behind it


def test_database_connection_through_the_proxy_meets_each_fault(
    postgresql: PostgreSQL, fault_proxy: Proxies
) -> None:
    proxy = fault_proxy(postgresql)
    params = postgresql.params | {"port": proxy.port}

    def connect_through() -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(**params, autocommit=True)

    with closing(connect_through()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        proxy.black_hole()
        connection.pgconn.send_query(b"select 2")
        assert not select.select([connection.fileno()], [], [], 0.1)[0]
        assert len(postgresql.census()) == 1
        proxy.pass_through()
        wait_until(lambda: select.select([connection.fileno()], [], [], 0)[0])
        while connection.pgconn.get_result():
            pass
        proxy.send_rst()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 3")

    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect_through()
    proxy.pass_through()
    with connect_through() as connection:
        proxy.send_fin()
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            connection.execute("select 4")
    wait_until(lambda: not postgresql.census())


def test_proxy_leads_to_another_database_after_a_switch(
    postgresql: PostgreSQL, mariadb: MariaDB, fault_proxy: Proxies
) -> None:
    proxy = fault_proxy(postgresql)
    psycopg.connect(**postgresql.params | {"port": proxy.port}).close()
    proxy.switch(mariadb.address)
    pymysql.connect(**mariadb.params | {"port": proxy.port}).close()
    assert proxy.accepted == 2
