"""What a statement does to its session, read from its text.

Nothing here asks a server.  So it is known what a text says, and not what the server's side does of
its own accord: triggers, views, rules, default values, and operators and casts that somebody defined.
A function by the name of a built-in one is taken for it.  Placeholders stand for values.  Literals
are read as the server does by default; if a backslash could mean something else in another session
(standard_conforming_strings, NO_BACKSLASH_ESCAPES), the text is harmless only if it is in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from . import functions, lexer, verbs
from .lexer import Lexer
from .verbs import NOTHING, UNKNOWN, Effect, Verb, Words

Dialect: TypeAlias = Literal["postgresql", "mysql", "sqlite", "unknown"]


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known of a text that a driver is about to send; of several statements all together."""

    verb: str
    """The first keyword in upper case; "" if there is none."""
    begins: bool
    """It opens a transaction block.  With `ends`: one is ended, and then one opened, or the reverse."""
    ends: bool
    """It ends the block that is open, if one is; MySQL's implicit commits are among them."""
    alters: str | None
    """What it is known to leave in the session beyond the transaction: "SET search_path".  Never a value."""
    harmless: bool
    """It is known to leave nothing in the session: every verb and every function in it is known."""
    asks_previous: str | None
    """What in it needs the session of the statement before: "LAST_INSERT_ID()"."""
    several: bool
    """It is more than one statement."""
    plain: bool = field(init=False)
    """It does nothing beyond itself: what most statements of a program are."""

    def __post_init__(self) -> None:
        beyond = self.begins or self.ends or self.asks_previous is not None
        object.__setattr__(self, "plain", self.harmless and not beyond)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How the statements of one server are read."""

    lexer: Lexer
    verbs: Mapping[str, Verb]
    harmless: frozenset[str] = frozenset()
    """Functions that leave nothing."""
    altering: Mapping[str, str] = field(default_factory=dict[str, str])
    """Functions that leave something, each with what that is."""
    asking: Mapping[str, str] = field(default_factory=dict[str, str])
    """Functions and variables that need the session of the statement before."""


def _same(names: str) -> dict[str, str]:
    return {name: f"{name}()" for name in names.split()}


def _upper(names: str) -> dict[str, str]:
    return {name: f"{name.upper()}()" for name in names.split()}


_RULES: Final[dict[str, _Rules]] = {
    "postgresql": _Rules(
        lexer.POSTGRESQL,
        verbs.POSTGRESQL,
        functions.GRAMMAR | functions.TYPES | functions.POSTGRESQL | functions.POSTGRESQL_GRAMMAR,
        _same(
            "pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared "
            "pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all set_config setseed "
            "dblink_connect dblink_connect_u dblink_disconnect dblink_open pg_backup_start "
            "pg_replication_origin_session_setup pg_replication_origin_session_reset"
        ),
        _same("currval lastval"),
    ),
    "mysql": _Rules(
        lexer.MYSQL,
        verbs.MYSQL,
        functions.GRAMMAR | functions.TYPES | functions.MYSQL,
        _upper("get_lock release_lock release_all_locks service_get_write_locks service_get_read_locks"),
        {
            **_upper("found_rows last_insert_id lastval row_count"),
            "@@identity": "@@identity",
            "@@last_insert_id": "@@last_insert_id",
            "@@warning_count": "@@warning_count",
            "@@error_count": "@@error_count",
        },
    ),
    "sqlite": _Rules(
        lexer.SQLITE,
        verbs.SQLITE,
        functions.GRAMMAR | functions.TYPES | functions.SQLITE,
        _same("load_extension"),
        _same("changes last_insert_rowid total_changes"),
    ),
    "unknown": _Rules(lexer.UNKNOWN, verbs.UNKNOWN_SERVER, functions.GRAMMAR),
}
_POSTGRESQL: Final = _RULES["postgresql"]
_MYSQL: Final = _RULES["mysql"]

_KEPT: Final = 2048  # texts
_LONGEST_KEPT: Final = 4096  # characters; longer ones are read each time


def recognise(text: str, dialect: Dialect) -> Statement:
    """Return what a text does to its session.

    Args:
        text: What the driver is given, with the placeholders in it.
        dialect: Whose SQL it is.  "unknown" is read with the caution that this calls for.

    No text raises an error.
    """
    return KNOWN[dialect][text]


class Readings(dict[str, Statement]):
    """What texts of one dialect do: read when it is asked for, and remembered for the next time.

    Up to 2,048 texts of up to 4,096 characters.  When there are more, all are forgotten: that is cheaper
    than to know at each statement which was used last.
    """

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self._dialect: Dialect = dialect

    def __missing__(self, text: str) -> Statement:
        statement = _read(text, self._dialect)
        if len(text) <= _LONGEST_KEPT:
            if len(self) >= _KEPT:
                self.clear()
            self[text] = statement
        return statement


KNOWN: Final[Mapping[str, Readings]] = {
    "postgresql": Readings("postgresql"),
    "mysql": Readings("mysql"),
    "sqlite": Readings("sqlite"),
    "unknown": Readings("unknown"),
}


def _read(text: str, dialect: Dialect) -> Statement:
    rules = _RULES[dialect]
    words = rules.lexer.cut(text)
    if not words and not text.isspace():
        # Nothing but comments, or a placeholder for which somebody may have SQL.
        return _statement(words, NOTHING if not text else UNKNOWN, several=False)
    statement = _understood(rules, words)
    if dialect == "mysql" and "/*" in text and "!" in text:
        # Whether /*!80000 ... */ is executed is the server's affair.
        skipped = _understood(rules, rules.lexer.cut(text, executed=False))
        statement = replace(
            statement,
            alters=statement.alters or skipped.alters,
            harmless=statement.harmless and skipped.harmless,
            asks_previous=statement.asks_previous or skipped.asks_previous,
        )
    if statement.harmless and rules.lexer.otherwise is not None and ("\\'" in text or '\\"' in text):
        other = _understood(rules, rules.lexer.otherwise.cut(text))
        statement = replace(statement, harmless=other.harmless)
    return statement


def _understood(rules: _Rules, words: list[str]) -> Statement:
    """Return what all statements in these words do together."""
    if ";" not in words:
        return _statement(words, _effect(rules, words) if words else NOTHING, several=False)
    parts = list(_parts(words))
    effects = [_effect(rules, part) for part in parts]
    return _statement(
        parts[0] if parts else [],
        Effect(
            alters=next((effect.alters for effect in effects if effect.alters), None),
            harmless=all(effect.harmless for effect in effects),
            begins=any(effect.begins for effect in effects),
            ends=any(effect.ends for effect in effects),
            asks_previous=_question(parts, effects),
        ),
        several=len(parts) > 1,
    )


def _statement(words: Words, effect: Effect, *, several: bool) -> Statement:
    verb = _verb(words)
    return Statement(
        verb=words[verb].upper() if verb < len(words) else "",
        begins=effect.begins,
        ends=effect.ends,
        alters=effect.alters,
        harmless=effect.harmless,
        asks_previous=effect.asks_previous,
        several=several,
    )


def _verb(words: Words) -> int:
    """Return where the verb stands: in (SELECT 1) UNION (SELECT 2) it is the second word."""
    return next((at for at, word in enumerate(words) if word[0] not in "()"), len(words))


def _parts(words: list[str]) -> Iterator[list[str]]:
    """Yield the words of each statement; the body of a stored program belongs to it."""
    at = 0
    while at < len(words):
        end = _end_of_program(words, at) if _is_program(words[at : at + 20]) else _next(";", words, at)
        if end > at:
            yield words[at:end]
        at = end + 1


def _next(sign: str, words: list[str], at: int) -> int:
    try:
        return words.index(sign, at)
    except ValueError:
        return len(words)


def _is_program(words: Words) -> bool:
    if words[0] == "begin":  # MariaDB's program without a name
        return words[1:3] == ["not", "atomic"]
    return words[0] == "create" and verbs.kind_created(words) in verbs.PROGRAMS


_NOT_OF_A_BLOCK: Final = (["case"], ["if"], ["loop"], ["repeat"], ["while"])


def _end_of_program(words: list[str], begin: int) -> int:
    """Return where the ``;`` is that is in no block and no parentheses (as in CREATE RULE)."""
    depth = 0
    for at in range(begin, len(words)):
        word = words[at]
        if word in ("begin", "("):
            depth += 1
        elif word == ")":
            depth -= 1
        elif word == "end" and words[at - 1] in (";", "begin"):  # and not CASE ... END
            depth -= words[at + 1 : at + 2] not in _NOT_OF_A_BLOCK
        elif word == ";" and depth <= 0:
            return at
    return len(words)


_INSERTS: Final = frozenset({"call", "copy", "insert", "load", "merge", "replace", "update", "with"})


def _question(parts: list[list[str]], effects: list[Effect]) -> str | None:
    """Return what is asked of the session before; an INSERT in the same text may have answered."""
    for part, effect in zip(parts, effects, strict=True):
        if effect.asks_previous:
            return effect.asks_previous
        if part[0] in _INSERTS:
            return None
    return None


def _effect(rules: _Rules, words: list[str]) -> Effect:
    """Return what one statement does: its verb, its functions, its variables."""
    at = _verb(words)
    if at:
        words = words[at:] or ["()"]
    verb = rules.verbs.get(words[0], UNKNOWN)
    effect = verb if isinstance(verb, Effect) else verb(words)
    for found in _called(rules, words):
        effect = _joined(effect, found)
    if rules is _MYSQL and "@" in "".join(words):  # in one go: words are many, and variables rare
        effect = _joined(effect, _variables(rules, words))
    # A program of several statements is not looked into.
    return effect._replace(harmless=False) if ";" in words else effect


def _joined(one: Effect, other: Effect) -> Effect:
    if other is NOTHING:
        return one
    return Effect(
        alters=one.alters or other.alters,
        harmless=one.harmless and other.harmless,
        begins=one.begins or other.begins,
        ends=one.ends or other.ends,
        asks_previous=one.asks_previous or other.asks_previous,
    )


def _variables(rules: _Rules, words: list[str]) -> Effect:
    effect = NOTHING
    for word in words:
        if word[0] == "@":
            name = "@@" + word.rpartition(".")[2] if "." in word else word
            if word.startswith("@@") and name in rules.asking:
                effect = verbs.asks(rules.asking[name])
    return _joined(verbs.variables(words), effect)


# -- functions

_NAMES_FOLLOW: Final = functions.names(
    "as constraint copy exists ignore index insert into key pragma recursive references replace table view "
    "with"
)
"""A name between one of these and a parenthesis is called by nobody: INTO users (name)."""

_INDEXES: Final = functions.names("fulltext index spatial unique")
_QUOTES: Final = re.compile(r"""[ \t\n\r\f\v"`\[\]]+""")


def _called(rules: _Rules, words: list[str]) -> Iterator[Effect]:
    """Yield the effect of each function that is called and not harmless."""
    harmless = rules.harmless
    before = words[0]
    name = words[1] if len(words) > 1 else ""
    for at in range(2, len(words)):  # what is called is never the verb
        word = words[at]
        if word[0] == "(" and name not in harmless and name[0] not in "();,=:@":
            plain = _QUOTES.sub("", name)
            if before in _NAMES_FOLLOW or _defined(words, before, name):
                pass
            elif (effect := _special(rules, words, at, plain.rpartition(".")[2])) is not None:
                yield effect
            elif plain.startswith("pg_catalog.") and '"' not in name:
                yield NOTHING if plain.removeprefix("pg_catalog.") in harmless else UNKNOWN
            elif before != ")" or rules is not _POSTGRESQL or "distinct" in words:
                yield UNKNOWN
            # else it is an alias: unnest(%s) x (a, b); only DISTINCT ON (a) is followed by calls
        before, name = name, word


def _defined(words: Words, before: str, name: str) -> bool:
    """Tell whether a name before a parenthesis is part of a definition: CREATE INDEX ON users (name)."""
    if words[0] == "alter":
        return name in functions.DEFINITION
    if words[0] != "create":
        return False
    return name in functions.DEFINITION or (before == "on" and verbs.kind_created(words) in _INDEXES)


def _special(rules: _Rules, words: list[str], at: int, name: str) -> Effect | None:
    """Return the effect of a call that is known to be special, `at` its parenthesis; None for others."""
    if name in rules.altering:
        if name == "set_config" and _is_local(words, at):
            return NOTHING
        return verbs.alters(rules.altering[name])
    if name not in rules.asking:
        return None
    if name == "last_insert_id" and words[at] == "(":
        # With an argument it is told, not asked. An INSERT that does so leaves what any INSERT does.
        return NOTHING if words[0] in ("insert", "replace") else verbs.alters("LAST_INSERT_ID(expr)")
    if name in ("currval", "lastval") and "nextval" in words:
        return NOTHING  # answered by the statement itself
    return verbs.asks(rules.asking[name])


def _is_local(words: list[str], opened: int) -> bool:
    """Tell whether the last argument of set_config() is the word true, and nothing else."""
    depth = 0
    for at in range(opened, len(words)):
        depth += {"(": 1, ")": -1}.get(words[at], 0)
        if not depth:
            return words[at - 2 : at] == [",", "true"]
    return False
