"""``manage.py check --database`` and ``manage.py pool_status``."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from .conftest import Use

pytestmark = pytest.mark.server


def ids(connection: Any) -> list[str]:
    return [message.id for message in connection.validation.check()]


def texts(connection: Any) -> str:
    return "\n".join(f"{message.msg} {message.hint}" for message in connection.validation.check())


def with_pool(use: Use, connection: Any, pool: dict[str, Any], **settings: Any) -> Any:
    options = {**connection.settings_dict["OPTIONS"], "pool": pool}
    return use("other", {**connection.settings_dict, **settings, "OPTIONS": options})


def test_a_sound_configuration_draws_no_message(served: Any) -> None:
    assert [name for name in ids(served) if name.startswith("connpool")] == []


def test_a_fleet_that_does_not_fit_into_the_server_is_told_what_would(use: Use, served: Any) -> None:
    fleet = with_pool(use, served, {"processes": 8, "max_size": 20})
    assert "connpool.W001" in ids(fleet)
    # PostgreSQL keeps three of its hundred for superusers.
    admits = {"postgresql": 97, "mysql": 100}[served.vendor]
    assert f"may open 160 connections, but the server admits {admits}" in texts(fleet)
    assert "max_size=12 would fit" in texts(fleet)


def test_health_checks_of_djangos_are_told_to_be_needless(use: Use, served: Any) -> None:
    assert "connpool.W002" in ids(with_pool(use, served, {}, CONN_HEALTH_CHECKS=True))


def test_a_transaction_for_each_request_makes_transaction_pooling_useless(use: Use, served: Any) -> None:
    assert "connpool.W003" in ids(with_pool(use, served, {"pooling": "transaction"}, ATOMIC_REQUESTS=True))


@pytest.mark.parametrize("timeout", [30, 60.0, None])
def test_a_timeout_that_nobody_will_live_to_see_is_told(use: Use, served: Any, timeout: float | None) -> None:
    assert "connpool.W004" in ids(with_pool(use, served, {"acquire_timeout": timeout}))


def test_the_status_command_compares_the_fleet_with_the_server(served: Any) -> None:
    out = StringIO()
    call_command("pool_status", database=served.alias, processes=60, verbosity=2, stdout=out)
    text = out.getvalue()
    assert f"{served.alias}: {served.vendor}, " in text
    assert "60 processes x 2 = 120" in text
    assert "too many: max_size=1 would fit" in text
    assert "max_lifetime=1800.0" in text
    assert served.settings_dict["PASSWORD"] == "" or served.settings_dict["PASSWORD"] not in text


def test_the_status_of_no_database_is_an_error() -> None:
    with pytest.raises(CommandError, match="there is no database 'nope'"):
        call_command("pool_status", database="nope")
