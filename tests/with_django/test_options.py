"""What stands under ``OPTIONS["pool"]``: refused with one clear message, or handed on."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from connpool.integrations.django import options

from .conftest import Use


def read(pool: object, **settings: Any) -> options.Settings | None:
    return options.read("default", {"OPTIONS": {"pool": pool}, **settings})


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ({"max_sise": 3}, "did you mean 'max_size'?"),
        ({"min_size": 3}, "it is called 'min_idle' here"),
        ({"max_overflow": 3}, "there is one bound, max_size"),
        ({"zzz": 3}, "there are: acquire_timeout, "),
        ({"max_size": 0}, "max_size=0: must be a whole number of at least 1"),
        ({"max_size": "5"}, "max_size='5': must be a whole number"),
        ({"reset": "all"}, "reset='all': must be"),
        ({"min_idle": 11}, "must not exceed max_size=10"),
        ({"pooling": "statement"}, 'pooling=\'statement\': must be "session" or "transaction"'),
        ({"pooling": "transaction", "behind": "pgbouncer"}, "one of the two is enough"),
        ({"settings": {}}, 'settings: for pooling="transaction" alone'),
        ({"pooling": "transaction", "on_session_state": "x"}, "on_session_state='x': must be"),
        ({"processes": "4"}, "processes='4': must be a whole number"),
        ({"on_connect": "nowhere.to.be.found"}, "No module named 'nowhere'"),
        (5, "must be a dict of options, True for a pool with all defaults, or False"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_setting_value_and_rule(pool: object, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read(pool)
    assert str(caught.value).startswith("DATABASES['default']['OPTIONS']['pool']")
    assert reason in str(caught.value)


@pytest.mark.parametrize("age", [600, None, 1.5])
def test_persistent_connections_are_refused_with_what_replaces_them(age: float | None) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"CONN_MAX_AGE.*must be 0.*max_lifetime"):
        read(True, CONN_MAX_AGE=age)
    assert read(False, CONN_MAX_AGE=age) is None  # without a pool they are Django's affair


def test_true_means_all_defaults_and_so_does_nothing_said() -> None:
    assert read(True) == options.Settings()
    assert options.read("default", {"OPTIONS": {}}) == options.Settings()


def test_every_option_of_a_pool_can_be_set() -> None:
    values: dict[str, Any] = {name: getattr(options.PoolOptions, name) for name in options.OF_THE_POOL}
    found = read(values)
    assert found is not None
    assert found.options == values


def test_a_function_may_be_named_by_its_path() -> None:
    found = read({"on_connect": "builtins.repr"})
    assert found is not None
    assert found.options["on_connect"] is repr


def test_the_number_of_processes_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    found, said = read(True), read({"processes": 2})
    assert found is not None
    assert said is not None
    assert (found.processes, said.processes) == (4, 2)


def test_behind_a_proxy_nothing_is_reset_unless_it_is_asked_for(use: Use, tmp_path: Any) -> None:
    settings = {
        "ENGINE": "connpool.integrations.django.postgresql",
        "NAME": "app",
        "OPTIONS": {"pool": {"behind": "pgbouncer"}},
    }
    pool = use("behind", settings).pool
    assert pool.reset_policy == "rollback"
    assert "TimeZone" not in str(pool.adapter.__dict__)  # PgBouncer refuses start-up parameters


def test_wrong_options_are_refused_before_anybody_connects(use: Use) -> None:
    wrong = {
        "ENGINE": "connpool.integrations.django.sqlite3",
        "NAME": "x",
        "OPTIONS": {"pool": {"max_sise": 1}},
    }
    with pytest.raises(ImproperlyConfigured, match="max_size"):
        use("wrong", wrong)


def test_a_pool_is_not_wanted_by_everybody(use: Use, tmp_path: Any) -> None:
    settings = {
        "ENGINE": "connpool.integrations.django.sqlite3",
        "NAME": str(tmp_path / "db"),
        "OPTIONS": {"pool": False},
        "CONN_MAX_AGE": 60,
    }
    connection = use("plain", settings)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.pool is None
    connection.close()
