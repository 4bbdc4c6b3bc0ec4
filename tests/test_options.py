"""Every rule of every option: a value that breaks it is refused, with option, value and rule named."""

from dataclasses import FrozenInstanceError, fields
from math import inf, nan
from typing import Any

import pytest

from connpool import ConnectionPool, Credentials, reset
from connpool.behind import PRESETS
from connpool.options import DEFAULT, PoolOptions, check_timeout, ping_after_of
from connpool.testing import FakeAdapter, FakeServer

SECONDS = {  # whether 0 and None mean something
    "acquire_timeout": (True, True),
    "connect_timeout": (False, True),
    "max_lifetime": (False, True),
    "idle_timeout": (False, True),
    "probe_after": (True, True),
    "ping_after": (True, True),
    "reset_timeout": (False, True),
    "keepalive": (False, True),
    "commit_timeout": (False, True),
    "warn_after": (False, True),
}
WHOLE = {  # the least, and whether None means something
    "min_idle": (0, False),
    "max_size": (1, False),
    "max_waiting": (0, True),
    "max_connecting": (1, False),
    "max_uses": (1, True),
    "max_dedicated": (0, False),
}
HOOKS = {"on_connect", "on_acquire", "on_release", "on_close"}
OTHER = {*HOOKS, "reset", "credentials", "require", "behind", "nested", "observers", "debug", "name"}

# Without the rules that compare two options.
ALONE: dict[str, Any] = {"probe_after": None, "ping_after": None}


def options(**values: Any) -> PoolOptions:
    return PoolOptions(**{**ALONE, **values})


def refusal(error: type[Exception], **values: Any) -> str:
    with pytest.raises(error) as caught:
        options(**values)
    return str(caught.value)


def test_every_option_is_looked_at_here() -> None:
    assert {option.name for option in fields(PoolOptions)} == {*SECONDS, *WHOLE, *OTHER}


def test_defaults_keep_their_own_rules() -> None:
    PoolOptions()


# -- seconds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0.001, 1, 2.5, 1e9])
def test_seconds_are_whole_or_not(name: str, value: float) -> None:
    assert getattr(options(**{name: value}), name) == value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, inf, -inf, nan])
def test_seconds_are_neither_negative_nor_endless(name: str, value: float) -> None:
    text = refusal(ValueError, **{name: value})
    assert text.startswith(f"{name}={value!r}: must be a number of seconds, ")


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["5", True, False, DEFAULT, [5], 5j])
def test_seconds_are_numbers(name: str, value: object) -> None:
    text = refusal(TypeError, **{name: value})
    assert text.startswith(f"{name}={value!r}: must be a number of seconds, ")


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0])
def test_zero_seconds_only_where_they_mean_something(name: str, value: float) -> None:
    if SECONDS[name][0]:
        assert getattr(options(**{name: value}), name) == 0
    else:
        assert "more than 0" in refusal(ValueError, **{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_refusal_says_what_zero_and_none_mean(name: str) -> None:
    zero, none = SECONDS[name]
    text = refusal(ValueError, **{name: -1})
    assert ("0 or more (0: " in text) == zero
    assert ("more than 0" in text) != zero
    assert (", or None for " in text) == none


# -- whole numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_least_whole_number_is_allowed_and_the_next_lower_is_not(name: str) -> None:
    least, _ = WHOLE[name]
    assert getattr(options(**{name: least}), name) == least
    text = refusal(ValueError, **{name: least - 1})
    assert text.startswith(f"{name}={least - 1}: must be a whole number of at least {least}")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, 2.5, "3", True, DEFAULT])
def test_whole_numbers_are_ints(name: str, value: object) -> None:
    text = refusal(TypeError, **{name: value})
    assert text.startswith(f"{name}={value!r}: must be a whole number of at least ")


# -- None --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SECONDS, *WHOLE])
def test_none_only_where_it_means_something(name: str) -> None:
    if (SECONDS | WHOLE)[name][1]:
        assert getattr(options(**{name: None}), name) is None
    else:
        text = refusal(TypeError, **{name: None})
        assert text.startswith(f"{name}=None: ")
        assert "or None" not in text


# -- hooks, switches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_hook_is_callable_or_none(name: str) -> None:
    assert getattr(options(**{name: print}), name) is print
    assert getattr(options(**{name: None}), name) is None
    text = refusal(TypeError, **{name: "SET x"})
    assert text == f"{name}='SET x': must be callable with a connection, or None"


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_debug_is_on_or_off(value: object) -> None:
    assert options(debug=True).debug
    assert refusal(TypeError, debug=value) == f"debug={value!r}: must be True or False"


def test_provider_is_callable_and_what_it_is_is_not_repeated() -> None:
    assert options(credentials=dict).credentials is dict
    assert refusal(TypeError, credentials="hunter2") == (
        "credentials: must be callable without arguments, or None"
    )


def test_credentials_keep_their_parameters_to_themselves() -> None:
    assert "hunter2" not in repr(Credentials({"password": "hunter2"}, expires_in=900.0))


@pytest.mark.parametrize("value", ["900", True, 0, -1.0, inf, nan])
def test_credentials_hold_for_a_number_of_seconds(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^expires_in=.*: must be a number of seconds"):
        Credentials({}, expires_in=value)


@pytest.mark.parametrize("value", ["write", "", True, 1])
def test_requirement_is_one_that_there_is(value: Any) -> None:
    assert options(require="read-write").require == "read-write"
    assert refusal(ValueError, require=value) == f'require={value!r}: must be "read-write", or None'


# -- the reset policy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("none", None),
        ([], None),
        ("rollback", ()),
        (reset.rollback, ()),
        ("full", (("full",),)),
        (print, (print,)),
        ([reset.unlock, "unlisten", print, "full"], (("unlock", "unlisten"), print, ("full",))),
        (("rollback", print, print), (print, print)),
    ],
)
def test_policy_becomes_steps_in_which_parts_stay_together(policy: Any, found: object) -> None:
    assert options(reset=policy).reset is policy
    assert reset.steps(policy) == found


@pytest.mark.parametrize("value", ["", "Full", "rollback;full", ["full", "everything"], ["none"]])
def test_unknown_policy_is_refused_with_those_there_are(value: Any) -> None:
    text = refusal(ValueError, reset=value)
    assert text.startswith(f'reset={value!r}: must be "rollback", "full", "tracked", "none", a callable')
    assert all(part in text for part in reset.Part)


@pytest.mark.parametrize("value", [None, 1, True, {"full"}, [1], [None], b"full"])
def test_policy_is_a_name_a_callable_or_a_list(value: Any) -> None:
    assert refusal(TypeError, reset=value).startswith(f"reset={value!r}: must be ")


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", 7, b"pool"])
def test_name_is_a_text_with_something_in_it(value: object) -> None:
    assert options(name="orders").name == "orders"
    assert refusal(TypeError, name=value) == f"name={value!r}: must be a non-empty string, or None"


# -- rules that compare two options ------------------------------------------------------------------


def test_min_idle_must_fit_into_max_size() -> None:
    assert options(min_idle=3, max_size=3).min_idle == 3
    assert refusal(ValueError, min_idle=4, max_size=3) == ("min_idle=4: must not exceed max_size=3")


def test_ping_comes_no_sooner_than_the_probe() -> None:
    assert options(probe_after=5, ping_after=5).ping_after == 5
    assert options(probe_after=None, ping_after=0).ping_after == 0
    assert options(probe_after=5, ping_after=None).probe_after == 5
    assert refusal(ValueError, probe_after=5, ping_after=4.5) == (
        "ping_after=4.5: must not be shorter than probe_after=5; set both, or probe_after=None"
    )


# -- the rest ----------------------------------------------------------------------------------------


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        PoolOptions().max_size = 5  # type: ignore[misc] # that is the point


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        PoolOptions(1)  # type: ignore[misc] # that is the point


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_sise"):
        PoolOptions(max_sise=5)  # type: ignore[call-arg] # that is the point


def test_timeout_argument_has_the_rule_of_acquire_timeout() -> None:
    for value in (None, 0, 1.5):
        check_timeout("timeout", value)
    with pytest.raises(ValueError, match=r"^timeout=-1: .*0 or more \(0: an idle connection or an error"):
        check_timeout("timeout", -1)
    with pytest.raises(TypeError, match=r"^timeout='1': "):
        check_timeout("timeout", "1")


def test_default_shows_as_its_name() -> None:
    assert repr(DEFAULT) == "DEFAULT"


# -- behind a proxy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", PRESETS)
def test_nothing_is_pinged_behind_a_proxy_unless_that_is_said(proxy: str) -> None:
    assert ping_after_of(DEFAULT, None) == 30.0
    assert ping_after_of(DEFAULT, proxy) is None
    assert ping_after_of(30.0, proxy) == 30.0
    assert ping_after_of(None, None) is None
    with ConnectionPool(FakeAdapter(FakeServer()), behind=proxy) as pool:  # type: ignore[arg-type]
        assert pool.describe().options["ping_after"] is None
    with ConnectionPool(FakeAdapter(FakeServer()), behind=proxy, ping_after=5.0) as pool:  # type: ignore[arg-type]
        assert pool.describe().options["ping_after"] == 5.0


@pytest.mark.parametrize("proxy", ["PgBouncer", "odyssey", "", 5, True])
def test_an_unknown_proxy_is_refused(proxy: Any) -> None:
    assert refusal(ValueError, behind=proxy).startswith(f"behind={proxy!r}: must be one of ")


@pytest.mark.parametrize("policy", ["full", "reset_connection", ["rollback", "discard_all"], reset.unlisten])
def test_a_reset_by_parts_is_refused_behind_a_proxy(policy: Any) -> None:
    text = refusal(ValueError, behind="pgbouncer", reset=policy)
    assert text.startswith(f"reset={policy!r}: it would meet another session")
    assert "behind='pgbouncer'" in text


@pytest.mark.parametrize("policy", ["rollback", "none", print, [print]])
def test_a_reset_that_needs_no_session_is_allowed_behind_a_proxy(policy: Any) -> None:
    options(behind="proxysql", reset=policy)


def test_a_requirement_is_refused_behind_a_proxy() -> None:
    assert "the proxy decides" in refusal(ValueError, behind="rds-proxy", require="read-write")
