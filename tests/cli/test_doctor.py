"""`connpool doctor` finds what was planted on real servers, and never says the password."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped, unused-ignore] # as in servers/mariadb.py
import pytest
from servers.mariadb import MariaDB
from servers.pgbouncer import PgBouncer
from servers.postgresql import PostgreSQL
from servers.process import bind_free_port, wait_until
from servers.proxy import FaultProxy
from typer.testing import CliRunner, Result

from connpool.cli import doctor as doctors
from connpool.cli import facts
from connpool.cli.app import app
from connpool.cli.facts import Facts, Keepalive, Link, Machine, MySQL, Pooler, Server, machine
from connpool.cli.findings import Finding, Plan, Severity, judge
from connpool.testing import FakeAdapter, FakeServer

OK, NOTE, WARNING, PROBLEM = Severity
SECRET = "k3epThis"


def doctor(url: str, *args: str) -> Result:
    return CliRunner().invoke(app, ["doctor", url, *args], prog_name="connpool")


def examine(url: str, *args: str) -> dict[str, dict[str, str]]:
    """Return the findings by name; each run of the command says all of them."""
    done = doctor(url, "--json", *args)
    assert done.exit_code in (0, 1), done.output
    report = json.loads(done.stdout)
    bad = {each["severity"] for each in report["findings"]} & {"warning", "problem"}
    assert done.exit_code == (1 if bad else 0)
    assert report["worst"] in (bad or {"ok", "note"})
    return {each["name"]: each for each in report["findings"]}


# -- what the facts mean

SERVER = Server(
    version="PostgreSQL 18.0",
    max_connections=100,
    reserved=3,
    sessions=1,
    idle_setting="idle_session_timeout",
)
MYSQL = replace(SERVER, version="MySQL 8.4", reserved=0, idle_setting="wait_timeout", thread_cache_size=100)
KEEPALIVE = Keepalive(on=True, idle=60, interval=10, count=3, user_timeout=30.0)
LINK = Link(local=False, tls="TLS", verified=True, keepalive=KEEPALIVE)
BOUNCER = Pooler(name="PgBouncer 1.25.0", mode="transaction", max_prepared_statements=200)
HEALTHY = Facts(
    server=SERVER,
    idle_limit=None,
    writable=True,
    link=LINK,
    pooler=None,
    machine=Machine(descriptors=1024, ports=28_232, time_wait=10),
)


def finding(name: str, facts: Facts, **plan: Any) -> Finding:
    (found,) = [each for each in judge(facts, Plan(**plan)) if each.name == name]
    return found


def test_nothing_is_wrong_with_a_healthy_server() -> None:
    assert {each.severity for each in judge(HEALTHY, Plan())} == {OK}


def with_server(**changes: Any) -> Facts:
    return replace(HEALTHY, server=replace(SERVER, **changes))


def with_mysql(**changes: Any) -> Facts:
    return replace(HEALTHY, server=replace(MYSQL, **changes))


def with_link(**changes: Any) -> Facts:
    return replace(HEALTHY, link=replace(LINK, **changes))


def with_pooler(**changes: Any) -> Facts:
    return replace(HEALTHY, pooler=replace(BOUNCER, **changes))


def with_machine(**changes: Any) -> Facts:
    return replace(HEALTHY, machine=replace(HEALTHY.machine, **changes))


LONG_SILENCE = Keepalive(on=True, idle=7200, interval=75, count=9)


@pytest.mark.parametrize(
    ("name", "facts", "plan", "severity", "says"),
    [
        # 97 for users, 82 without the reserve.
        ("max_connections", HEALTHY, {"size": 82}, OK, "fit"),
        ("max_connections", HEALTHY, {"size": 83}, WARNING, "less than 15 % of 97"),
        ("max_connections", HEALTHY, {"size": 98}, PROBLEM, "there are 97"),
        ("max_connections", HEALTHY, {"processes": 9}, WARNING, "At most max_size=9 "),
        ("max_connections", HEALTHY, {"processes": 10}, PROBLEM, "10 processes x max_size=10 = 100"),
        ("max_connections", with_server(limits={"a limit": 5}), {}, PROBLEM, "a larger a limit"),
        ("max_connections", with_server(limits={"a limit": 0}), {}, PROBLEM, "there are 0"),
        ("max_connections", with_pooler(), {"size": 200}, OK, "connections of PgBouncer"),
        ("sessions", with_server(sessions=82), {}, OK, "room"),
        ("sessions", with_server(sessions=83), {}, WARNING, "in use already"),
        ("sessions", with_server(sessions=93), {}, PROBLEM, "full, or nearly"),
        ("idle sessions", replace(HEALTHY, idle_limit=750.0), {}, OK, "Longer"),
        ("idle sessions", replace(HEALTHY, idle_limit=749.0), {}, NOTE, "idle_timeout=599.2"),
        ("idle sessions", replace(HEALTHY, idle_limit=59.0), {}, WARNING, "47.2 s idle"),
        ("writes", replace(HEALTHY, writable=False), {}, WARNING, 'require="read-write"'),
        ("tls", with_link(tls=None), {}, WARNING, "in the clear"),
        ("tls", with_link(tls=None, local=True), {}, NOTE, "does not leave this machine"),
        ("tls", with_link(verified=False), {}, WARNING, "sslmode=verify-full"),
        ("keepalive", with_link(keepalive=None), {}, OK, "vanish silently"),
        ("keepalive", with_link(keepalive=replace(KEEPALIVE, on=False)), {}, WARNING, "not noticed"),
        ("keepalive", with_link(keepalive=LONG_SILENCE), {}, WARNING, "within 7875 s"),
        ("keepalive", with_link(keepalive=Keepalive(on=True)), {}, OK, "does not tell"),
        ("pooler", with_pooler(), {}, NOTE, "SET LOCAL"),
        ("pooler", with_pooler(max_prepared_statements=0), {}, WARNING, "prepare_threshold=None"),
        ("pooler", with_pooler(max_prepared_statements=None), {}, WARNING, "unless max_prepared_statements"),
        ("pooler", with_pooler(max_client_conn=9), {}, PROBLEM, "max_client_conn is 9"),
        ("pooler", with_pooler(mode="statement"), {}, PROBLEM, "pool_mode = transaction"),
        ("pooler", with_pooler(mode="session"), {}, NOTE, "for as long as it is open"),
        ("pooler", with_pooler(mode="session", default_pool_size=9), {}, WARNING, "wait for 9"),
        ("pooler", with_pooler(mode=None, in_vain=True), {}, WARNING, "SHOW POOLS"),
        ("pooler", with_pooler(mode=None, name="ProxySQL"), {}, NOTE, "avoid SET"),
        ("thread_cache_size", with_mysql(), {}, OK, "a thread that is there"),
        ("thread_cache_size", with_mysql(thread_cache_size=9), {}, NOTE, "thread_cache_size to 10"),
        ("thread_cache_size", with_mysql(thread_cache_size=0), {}, WARNING, "thread_cache_size to 10"),
        ("ulimit -n", with_machine(descriptors=84), {}, OK, "Enough"),
        ("ulimit -n", with_machine(descriptors=83), {}, WARNING, "more than half"),
        ("ulimit -n", with_machine(descriptors=73), {}, PROBLEM, "LimitNOFILE"),
        ("ephemeral ports", with_machine(time_wait=14_200), {}, WARNING, "More than half"),
        ("ephemeral ports", with_machine(time_wait=28_230), {}, PROBLEM, "no free port"),
    ],
)
def test_facts_have_a_meaning(
    name: str, facts: Facts, plan: dict[str, int], severity: Severity, says: str
) -> None:
    found = finding(name, facts, **plan)
    assert (found.severity, says in f"{found.meaning} {found.advice}") == (severity, True), found
    assert found.advice or severity in (OK, NOTE), "a finding without advice leaves its reader alone"


def test_what_a_system_does_not_tell_is_left_out() -> None:
    names = {each.name for each in judge(replace(HEALTHY, machine=Machine()), Plan())}
    assert not names & {"ulimit -n", "ephemeral ports", "thread_cache_size", "idle transactions"}


def test_ports_and_time_wait_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/sockstat").write_text("sockets: used 290\nTCP: inuse 5 orphan 0 tw 31 alloc 6 mem 1\n")
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_local_port_range").write_text("32768\t60999\n")
    found = machine(tmp_path)
    assert (found.ports, found.time_wait) == (28_232, 31)


def test_a_system_without_proc_has_none_of_it(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert (found.ports, found.time_wait) == (None, None)


# -- PostgreSQL


@pytest.mark.server
def test_planted_on_postgresql(postgresql: PostgreSQL, postgresql_database: str) -> None:
    for planted in (
        "set idle_session_timeout = '30s'",
        "set idle_in_transaction_session_timeout = '45s'",
        "set default_transaction_read_only = on",
        "connection limit 5",
    ):
        postgresql.execute(f"alter database {postgresql_database} {planted}")

    found = examine(postgresql.url_for(dbname=postgresql_database) + "?keepalives=0")

    assert found["version"]["value"].startswith("PostgreSQL 18")
    assert found["pooler"]["value"] == "none seen"
    assert found["max_connections"]["value"] == "100, 3 of them reserved; the database's CONNECTION LIMIT 5"
    assert "24 s idle" in found["idle sessions"]["meaning"]
    assert found["idle transactions"]["value"] == "idle_in_transaction_session_timeout: 45 s"
    severities = {name: each["severity"] for name, each in found.items() if each["severity"] != "ok"}
    assert severities == {
        "max_connections": "problem",
        "idle sessions": "warning",
        "writes": "warning",
        "keepalive": "warning",
        "tls": "note",
    }


@pytest.mark.server
def test_sessions_of_others_count(postgresql: PostgreSQL) -> None:
    def sessions() -> int:
        return int(examine(postgresql.url)["sessions"]["value"].split()[0])

    before = sessions()
    with closing(psycopg.connect(**postgresql.params_for(user=postgresql.superuser))):
        assert sessions() == before + 1


@pytest.mark.server
def test_tls_is_verified_or_not(system_postgresql: PostgreSQL) -> None:
    verified = examine(system_postgresql.url)["tls"]
    assert (verified["value"], verified["severity"]) == ("TLS, verified", "ok")
    believed = examine(system_postgresql.url.partition("?")[0] + "?sslmode=require")["tls"]
    assert (believed["value"], believed["severity"]) == ("TLS, not verified", "note")


# -- PgBouncer


@pytest.mark.server
@pytest.mark.parametrize(
    ("mode", "severity"), [("session", "note"), ("transaction", "warning"), ("statement", "problem")]
)
def test_pgbouncer_and_its_mode_are_seen(
    mode: Any, severity: str, postgresql_behind_pgbouncer: PostgreSQL
) -> None:
    with PgBouncer(postgresql_behind_pgbouncer.address, pool_mode=mode) as bouncer:
        found = examine(bouncer.url)
        assert found["pooler"]["value"] == f"a pooler such as PgBouncer, {mode} mode"
        assert found["pooler"]["severity"] == severity
        wait_until(lambda: not bouncer.census(), what="no connection is left behind")


@pytest.mark.server
def test_mode_is_seen_while_others_use_the_sessions(pgbouncer: PgBouncer) -> None:
    ended = threading.Event()

    def use() -> None:
        with closing(psycopg.connect(**pgbouncer.params, autocommit=True, prepare_threshold=None)) as conn:
            while not ended.is_set():
                conn.execute("select 1")

    others = [threading.Thread(target=use) for _ in range(4)]
    for other in others:
        other.start()
    try:
        assert examine(pgbouncer.url)["pooler"]["value"].endswith("transaction mode")
    finally:
        ended.set()
        for other in others:
            other.join()


@pytest.mark.server
def test_who_may_use_the_console_gets_the_settings(pgbouncer: PgBouncer) -> None:
    url = pgbouncer.url.replace(f"//{pgbouncer.user}@", f"//{pgbouncer.superuser}@")
    found = examine(url, "--size", "201")["pooler"]
    assert found["value"].startswith("PgBouncer 1.")
    assert found["value"].endswith(", transaction mode")
    assert (found["severity"], found["meaning"].endswith("max_client_conn is 200.")) == ("problem", True)


@pytest.mark.server
@pytest.mark.parametrize("limit", [{"default_pool_size": 1}, {"max_client_conn": 1}], ids=str)
def test_no_second_session_is_an_answer_too(
    limit: dict[str, int], postgresql_behind_pgbouncer: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors, "PROBING", 0.3)
    upstream = postgresql_behind_pgbouncer.address
    with PgBouncer(upstream, pool_mode="session", **limit) as bouncer:
        found = examine(bouncer.url)["pooler"]
    assert (found["severity"], "SHOW POOLS" in found["advice"]) == ("warning", True)


# -- MariaDB


@contextmanager
def planted(server: MariaDB, **variables: int) -> Iterator[None]:
    """Set global variables, and put them back."""
    before = {name: server.execute(f"select @@global.{name}")[0][0] for name in variables}
    for name, value in variables.items():
        server.execute(f"set global {name} = {value}")
    try:
        yield
    finally:
        for name, value in before.items():
            server.execute(f"set global {name} = {value}")


@pytest.mark.server
def test_planted_on_mariadb(mariadb: MariaDB) -> None:
    variables = {"wait_timeout": 30, "thread_cache_size": 0, "read_only": 1, "max_connections": 11}
    with planted(mariadb, **variables):
        found = examine(mariadb.url, "--processes", "2")

    assert found["version"]["value"].startswith("MariaDB ")
    assert "24 s idle" in found["idle sessions"]["meaning"]
    severities = {name: each["severity"] for name, each in found.items() if each["severity"] != "ok"}
    assert severities == {
        "max_connections": "problem",
        "idle sessions": "warning",
        "idle transactions": "note",
        "thread_cache_size": "warning",
        "writes": "warning",
        "tls": "note",
    }


@pytest.mark.server
def test_limit_of_a_mariadb_user(mariadb: MariaDB) -> None:
    mariadb.execute("alter user app with max_user_connections 5")
    try:
        found = examine(mariadb.url)["max_connections"]
    finally:
        mariadb.execute("alter user app with max_user_connections 0")
    assert (found["severity"], "max_user_connections 5" in found["value"]) == ("problem", True)


class FakeProxy:
    """Answers one statement, or nothing, as ProxySQL's and MaxScale's documentation has it."""

    def __init__(self, *, knows: str) -> None:
        self.knows = knows

    @contextmanager
    def cursor(self) -> Iterator["FakeProxy"]:
        yield self

    def execute(self, statement: str) -> None:
        if statement != self.knows:
            raise pymysql.ProgrammingError(1064, "You have an error in your SQL syntax")

    def fetchall(self) -> tuple[tuple[str]]:
        return (("{}",),)


@pytest.mark.parametrize(
    ("knows", "numbers_differ", "name"),
    [
        ("PROXYSQL INTERNAL SESSION", False, "ProxySQL"),
        ("", True, "a proxy such as MaxScale"),
        ("", False, None),
    ],
)
def test_proxies_are_recognised_as_documented(knows: str, numbers_differ: bool, name: str | None) -> None:
    server = replace(MYSQL, numbers_differ=numbers_differ)
    found = MySQL().pooler(FakeAdapter(FakeServer()), FakeProxy(knows=knows), server, 1.0)
    assert (found and found.name) == name


# -- no report


def failed(url: str, *args: str) -> str:
    """Return what is said when there is no report, which is the same in words and in JSON."""
    done, as_json = doctor(url, *args), doctor(url, *args, "--json")
    assert (done.exit_code, as_json.exit_code) == (2, 2)
    assert (done.stdout, as_json.stderr) == ("", "")
    assert SECRET not in done.output + as_json.output
    assert done.stderr == f"connpool: {json.loads(as_json.stdout)['error']}\n"
    return done.stderr


@pytest.mark.server
def test_wrong_password(mariadb: MariaDB) -> None:
    said = failed(mariadb.url.replace(mariadb.password, SECRET))
    assert said.startswith("connpool: not connected: Access denied")  # and not PyMySQL's number first
    assert "Check user, password and database." in said


@pytest.mark.server
def test_wrong_password_for_pgbouncer(postgresql_behind_pgbouncer: PostgreSQL) -> None:
    settings = {"auth_type": "scram-sha-256"}
    with PgBouncer(postgresql_behind_pgbouncer.address, settings=settings) as bouncer:
        said = failed(bouncer.url.replace("//app@", f"//app:{SECRET}@"))
    assert "authentication failed" in said
    assert "Check user, password and database." in said


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_closed_port(scheme: str) -> None:
    with bind_free_port() as taken:  # nobody listens
        said = failed(f"{scheme}://app:{SECRET}@127.0.0.1:{taken.getsockname()[1]}/app")
    assert "Connection refused" in said
    assert said.count("Check host and port") == 1


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_unknown_host(scheme: str) -> None:
    said = failed(f"{scheme}://app:{SECRET}@nowhere.invalid/app")
    assert "nowhere.invalid" in said


@pytest.mark.server
def test_a_server_that_falls_silent_is_given_up(
    postgresql: PostgreSQL, fault_proxy: Callable[[PostgreSQL], FaultProxy]
) -> None:
    proxy = fault_proxy(postgresql)
    proxy.black_hole()
    began = monotonic()
    done = doctor(postgresql.url.replace(f":{postgresql.port}/", f":{proxy.port}/"), "--timeout", "0.3")
    assert (done.exit_code, "not connected within 0.3 s" in done.stderr) == (2, True)
    assert monotonic() - began < 3


@pytest.mark.server
def test_a_question_without_an_answer_is_given_up(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def server(self: object, conn: Any) -> None:
        conn.execute("select pg_sleep(1)")

    monkeypatch.setattr(facts.PostgreSQL, "server", server)
    done = doctor(postgresql.url, "--timeout", "0.3")
    assert (done.exit_code, done.stderr) == (
        2,
        "connpool: connected, but the server did not answer within 0.3 s\n",
    )
    wait_until(lambda: not any("pg_sleep" in each.query for each in postgresql.census()))


def test_a_call_without_a_limit_of_its_own_is_given_up() -> None:
    ended = threading.Event()
    with pytest.raises(TimeoutError):
        doctors.within(monotonic() + 0.05, ended.wait)
    ended.set()
    assert doctors.within(monotonic() + 5, lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        doctors.within(monotonic() + 5, lambda: 1 // 0)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://app:pa@{SECRET}@host/app",  # libpq: a host
        f"postgresql://app:{SECRET}/word@host/app",  # a port
        f"postgresql://app:1/{SECRET}@host/app",  # a database
        f"postgresql://app:{SECRET}?x@host/app",
        f"postgresql://app:1?{SECRET}@host/app",  # the name of a parameter
        f"mysql://app:1?{SECRET}@host/app",
        f"mysql://app:{SECRET}#x@host/app",
        f"mysql://app:[{SECRET}@host/app",
        f"postgresql://app:%{SECRET}@host/app",
        f"{SECRET}",
        f"oracle://app:{SECRET}@host",
    ],
)
def test_no_part_of_a_password_is_taken_for_something_that_is_shown(url: str) -> None:
    failed(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:p%40ss@host:5432/app?sslmode=verify-full&options=-c%20x",
        "postgresql://app@[::1]:5432/app",
        "postgresql://app@one:1,two:2/app?target_session_attrs=read-write",
        "postgresql:///app?host=/run/postgresql",
        "postgresql://",
        "mysql+pymysql://app:a:b@host/app?ssl_ca=/etc/ca.pem",
    ],
)
def test_good_urls_are_read(url: str) -> None:
    assert doctors.URL.fullmatch(url)


def test_sqlite_has_no_server() -> None:
    assert failed("sqlite:///x.db") == "connpool: sqlite3 has no server to examine\n"


# -- the command


@pytest.mark.server
def test_command_takes_its_url_from_the_environment(postgresql: PostgreSQL) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from connpool.cli import main; main()", "doctor"],
        env={"CONNPOOL_URL": postgresql.url, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "PostgreSQL 18" in done.stdout
    assert "idle_in_transaction_session_timeout: never" in done.stdout  # in 80 columns


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "connpool.adapters.pymysql", raising=False)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    said = failed("mysql://app@host/app")
    assert said == "connpool: pymysql is missing; run: pip install 'dbapi-connpool[pymysql]'\n"
