"""What each verb leaves in a session, as one table for each server.

A table maps the first word of a statement to its effect, or to a function that looks at the rest of
the words.  A verb that is not in the table may do anything.  Functions that are called are not
looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from .functions import names

Words: TypeAlias = Sequence[str]


class Effect(NamedTuple):
    """What one statement does; the fields are those of `Statement`."""

    alters: str | None = None
    harmless: bool = True
    begins: bool = False
    ends: bool = False
    asks_previous: str | None = None


Verb: TypeAlias = Effect | Callable[[Words], Effect]

NOTHING: Final = Effect()
UNKNOWN: Final = Effect(harmless=False)
BEGINS: Final = Effect(begins=True)
ENDS: Final = Effect(ends=True)


def alters(what: str, *, ends: bool = False) -> Effect:
    """Return the effect of a statement that leaves something behind."""
    return Effect(alters=what, harmless=False, ends=ends)


def asks(what: str) -> Effect:
    """Return the effect of a statement that needs the session of the one before."""
    return Effect(asks_previous=what)


def named(verb: str, words: Words, at: int) -> str:
    """Return "SET search_path": a verb and a name, never a value."""
    name = words[at][:80] if at < len(words) and words[at][0] not in "();,=:" else ""
    return f"{verb} {name}".rstrip()


def follows(words: Words, *phrase: str) -> bool:
    """Tell whether the words of a phrase stand in a row somewhere."""
    size = len(phrase)
    return any(tuple(words[at : at + size]) == phrase for at in range(len(words) - size + 1))


def verbs(text: str) -> dict[str, Verb]:
    """Return a table in which these verbs leave nothing."""
    return dict.fromkeys(names(text), NOTHING)


# -- all servers

KINDS: Final = names(
    "database domain event extension foreign function index language materialized operator package policy "
    "procedure publication role rule schema sequence server statistics subscription table tablespace "
    "trigger type unique fulltext spatial unlogged user view virtual"
)
"""What CREATE creates: the first of these after it, and before the name."""

PROGRAMS: Final = frozenset({"event", "function", "package", "procedure", "rule", "trigger"})
_MODIFIERS: Final = 16  # words; DEFINER and the like stand before the kind
_TEMPORARY: Final = frozenset({"temp", "temporary"})
_BEFORE_TEMPORARY: Final = frozenset({"or", "replace", "global", "local", "private"})


def kind_created(words: Words) -> str:
    """Return what a CREATE creates: "table"; "" if that is not known."""
    return next((word for word in words[1:_MODIFIERS] if word in KINDS), "")


def temporary_kind(words: Words) -> str:
    """Return what a CREATE TEMPORARY creates: "table"; "" if it is not temporary."""
    for at, word in enumerate(words[1:6], start=1):
        if word in _TEMPORARY:
            return next((kind for kind in words[at + 1 : at + 3] if kind in KINDS), "object")
        if word not in _BEFORE_TEMPORARY:
            break
    return ""


def _plain(name: str) -> str:
    return name.replace('"', "").replace("`", "").replace("[", "").replace("]", "")


def in_schema(word: str, schema: str) -> bool:
    """Tell whether a word is a name qualified by a schema whose name begins like this."""
    return "." in word and _plain(word).startswith(schema)


def _chained(words: Words) -> Effect:
    """COMMIT AND CHAIN opens the next transaction."""
    return Effect(begins=follows(words, "and", "chain"), ends=True)


def _rollback(words: Words) -> Effect:
    return NOTHING if "to" in words[1:4] else _chained(words)


# -- PostgreSQL


def _pg_set(words: Words) -> Effect:
    at = 2 if words[1:2] == ["session"] else 1
    first = words[at] if at < len(words) else ""
    if at == 2 and first in ("authorization", "characteristics"):
        return alters(f"SET SESSION {first.upper()}")
    if at == 1 and first in ("local", "transaction", "constraints"):
        return NOTHING
    if first == "time" and words[at + 1 : at + 2] == ["zone"]:
        return alters("SET TIME ZONE")
    return alters("SET ROLE" if first == "role" else named("SET", words, at))


def _pg_temporary(kind: str, words: Words) -> Effect:
    return NOTHING if follows(words, "on", "commit", "drop") else alters(f"a temporary {kind}")


_PG_RUNS_CODE: Final = frozenset({"extension", "function", "language", "procedure", "server", ""})


def _pg_create(words: Words) -> Effect:
    if kind := temporary_kind(words):
        return _pg_temporary(kind, words)
    if any(in_schema(word, "pg_temp") for word in words[:_MODIFIERS]):
        return alters(f"a temporary {kind_created(words) or 'object'}")
    # A library or an extension may bring settings and hooks along.
    return UNKNOWN if kind_created(words) in _PG_RUNS_CODE else NOTHING


def _pg_query(words: Words) -> Effect:
    """SELECT ... INTO TEMP is an old form of CREATE TEMP TABLE AS."""
    if "into" not in words:
        return NOTHING
    for at in (at for at, word in enumerate(words) if word == "into"):
        # INSERT INTO temp is a table by this name.
        if words[at - 1] not in ("insert", "merge"):
            target = [word for word in words[at + 1 : at + 3] if word not in ("local", "global")]
            if target and (target[0] in _TEMPORARY or in_schema(target[0], "pg_temp")):
                return alters("a temporary table")
    return NOTHING


def _pg_declare(words: Words) -> Effect:
    return alters("a cursor WITH HOLD") if follows(words, "with", "hold") else NOTHING


def _pg_prepare(words: Words) -> Effect:
    # PREPARE TRANSACTION ends the transaction; a statement of that name is followed by ( or AS.
    if words[1:] == ["transaction"]:
        return ENDS
    return alters("PREPARE")


def _pg_commit(words: Words) -> Effect:
    return NOTHING if words[1:2] == ["prepared"] else _chained(words)


def _pg_rollback(words: Words) -> Effect:
    return NOTHING if words[1:2] == ["prepared"] else _rollback(words)


def _explained(table: Mapping[str, Verb], statements: frozenset[str]) -> Callable[[Words], Effect]:
    def explain(words: Words) -> Effect:
        for at, word in enumerate(words[1:], start=1):
            if word in statements:
                verb = table[word]
                return verb if isinstance(verb, Effect) else verb(words[at:])
        return NOTHING

    return explain


POSTGRESQL: Final[dict[str, Verb]] = {
    **verbs(
        "alter analyze checkpoint close cluster comment copy delete drop fetch grant insert lock merge move "
        "notify reassign refresh reindex release revoke savepoint security show truncate update vacuum"
    ),
    **dict.fromkeys(("select", "table", "values", "with"), _pg_query),
    "abort": _pg_rollback,
    "begin": BEGINS,
    "commit": _pg_commit,
    "create": _pg_create,
    "deallocate": alters("DEALLOCATE"),
    "declare": _pg_declare,
    "discard": lambda words: alters(named("DISCARD", words, 1)),
    "end": _pg_commit,
    "execute": UNKNOWN,
    "listen": alters("LISTEN"),
    "load": alters("LOAD"),
    "prepare": _pg_prepare,
    "reset": lambda words: alters(named("RESET", words, 1)),
    "rollback": _pg_rollback,
    "set": _pg_set,
    "start": BEGINS,
    "unlisten": alters("UNLISTEN"),
}
POSTGRESQL["explain"] = _explained(
    POSTGRESQL,
    names("select table values with insert update delete merge create declare execute refresh"),
)


# -- MySQL and MariaDB

_ACCOUNTS: Final = frozenset({"alter", "create", "drop", "grant", "rename", "revoke", "set", "show"})
"""Verbs in which @localhost is half of an account."""


def variables(words: Words) -> Effect:
    """Return what a statement does to user variables, apart from SET."""
    if ":=" in words:
        for before, word in pairwise(words):
            if word == ":=" and before[0] == "@":
                return alters(f"the user variable {before[:80]}")
    if words[:2] == ["set", "statement"] and "for" in words:
        words = words[words.index("for") :]
    if words[0] in _ACCOUNTS:
        return NOTHING
    used = [at for at, word in enumerate(words) if word[0] == "@" and not word.startswith("@@")]
    if not used:
        return NOTHING
    if words[0] in ("call", "get", "load") or any(words[at - 1] == "into" for at in used):
        return alters(f"the user variable {words[used[0]][:80]}")
    return Effect(harmless=False, asks_previous=words[used[0]][:80])


def _mysql_query(words: Words) -> Effect:
    return alters("SQL_CALC_FOUND_ROWS") if "sql_calc_found_rows" in words else NOTHING


_NOT_OF_THE_SESSION: Final = frozenset({"global", "persist", "persist_only", "password", "default"})


def _mysql_set(words: Words) -> Effect:
    first = words[1] if len(words) > 1 else ""
    if first == "statement" and "for" in words:  # MariaDB: for this one statement
        rest = words[words.index("for") + 1 :]
        verb = MYSQL.get(rest[0], UNKNOWN) if rest else UNKNOWN
        return verb if isinstance(verb, Effect) else verb(rest)
    scope = first.lstrip("@").partition(".")[0] if first.startswith("@@") else first
    if scope in _NOT_OF_THE_SESSION and "," not in words:
        return NOTHING
    return alters(_mysql_setting(words), ends="autocommit" in " ".join(words))


def _mysql_setting(words: Words) -> str:
    rest = [word for word in words[1:4] if word not in ("session", "local")]
    first = rest[0] if rest else ""
    if first == "transaction" and len(rest) == len(words[1:4]):
        return "SET TRANSACTION for the next transaction"
    if first in ("character", "charset", "names"):
        return "SET NAMES" if first == "names" else "SET CHARACTER SET"
    return named("SET", rest, 0)


def _mysql_create(words: Words) -> Effect:
    if kind := temporary_kind(words):
        return alters(f"a temporary {kind}")
    return Effect(harmless=kind_created(words) not in PROGRAMS, ends=True)


def _mysql_drop(words: Words) -> Effect:
    if words[1:2] == ["prepare"]:
        return alters("DROP PREPARE")
    return NOTHING if words[1:2] == ["temporary"] else ENDS


def _mysql_flush(words: Words) -> Effect:
    if follows(words, "with", "read", "lock") or follows(words, "for", "export"):
        return alters("FLUSH TABLES WITH READ LOCK", ends=True)
    return ENDS


def _mysql_show(words: Words) -> Effect:
    for word in words[1:8]:
        if word in ("warnings", "errors", "profile", "profiles"):
            return asks(f"SHOW {word.upper()}")
    return NOTHING


def _mysql_begin(words: Words) -> Effect:
    if "not" in words[1:2]:  # MariaDB's BEGIN NOT ATOMIC, a program without a name
        return UNKNOWN
    return Effect(begins=True, ends=True)


def _mysql_start(words: Words) -> Effect:
    return Effect(begins=True, ends=True) if words[1:2] == ["transaction"] else UNKNOWN


def _mysql_commit(words: Words) -> Effect:
    if "release" in words and not follows(words, "no", "release"):
        return Effect(harmless=False, ends=True)  # it closes the connection
    return Effect(begins=follows(words, "and", "chain"), ends=True)


def _mysql_rollback(words: Words) -> Effect:
    return NOTHING if "to" in words[1:4] else _mysql_commit(words)


def _mysql_xa(words: Words) -> Effect:
    what = words[1] if len(words) > 1 else ""
    if what == "recover":
        return NOTHING
    if what in ("commit", "rollback"):
        return Effect(harmless=False, ends=True)
    return Effect(alters="an XA transaction", harmless=False, begins=what in ("start", "begin"))


def _mysql_execute(words: Words) -> Effect:
    return UNKNOWN if words[1:2] == ["immediate"] else alters("EXECUTE")


MYSQL: Final[dict[str, Verb]] = {
    **verbs("checksum delete do help insert load replace savepoint show table update values"),
    **dict.fromkeys(
        names("alter analyze cache check grant optimize rename repair reset revoke truncate"), ENDS
    ),
    **dict.fromkeys(("select", "with"), _mysql_query),
    "backup": alters("BACKUP"),
    "begin": _mysql_begin,
    "commit": _mysql_commit,
    "create": _mysql_create,
    "deallocate": alters("DEALLOCATE"),
    "drop": _mysql_drop,
    "execute": _mysql_execute,
    "flush": _mysql_flush,
    "get": asks("GET DIAGNOSTICS"),
    "handler": alters("HANDLER"),
    "lock": alters("LOCK TABLES", ends=True),
    "prepare": alters("PREPARE"),
    "release": NOTHING,  # SAVEPOINT
    "rollback": _mysql_rollback,
    "set": _mysql_set,
    "show": _mysql_show,
    "start": _mysql_start,
    "unlock": alters("UNLOCK TABLES", ends=True),
    "use": alters("USE"),
    "xa": _mysql_xa,
}
for _explain in ("desc", "describe", "explain"):
    MYSQL[_explain] = _explained(MYSQL, names("select table values with insert replace update delete"))


# -- SQLite


def _sqlite_create(words: Words) -> Effect:
    if kind := temporary_kind(words):
        return alters(f"a temporary {kind}")
    if any(in_schema(word, "temp.") or in_schema(word, "temp ") for word in words[:_MODIFIERS]):
        return alters(f"a temporary {kind_created(words) or 'object'}")
    return UNKNOWN if kind_created(words) in ("virtual", "") else NOTHING


_SQLITE_LOOKS: Final = names(
    "collation_list compile_options database_list foreign_key_check foreign_key_list function_list "
    "index_info index_list index_xinfo integrity_check module_list optimize pragma_list quick_check "
    "table_info table_list table_xinfo wal_checkpoint"
)


def _sqlite_pragma(words: Words) -> Effect:
    name = words[1].rpartition(".")[2].strip() if len(words) > 1 else ""
    if len(words) == 2 or (name in _SQLITE_LOOKS and "=" not in words):
        return NOTHING
    return alters(named("PRAGMA", words, 1))


SQLITE: Final[dict[str, Verb]] = {
    **verbs("alter analyze delete drop insert reindex release replace select update vacuum values with"),
    "attach": alters("ATTACH"),
    "begin": BEGINS,
    "commit": ENDS,
    "create": _sqlite_create,
    "detach": alters("DETACH"),
    "end": ENDS,
    "explain": NOTHING,  # and nothing is executed
    "pragma": _sqlite_pragma,
    "rollback": _rollback,
    "savepoint": BEGINS,  # outside of a transaction it opens one
}


# -- servers that we do not know

_SUSPECT: Final = names(
    "alter attach call create declare deallocate detach do drop exec execute go handler listen load lock "
    "pragma prepare reset truncate unlisten unlock use"
)
"""Some servers need nothing between two statements: SELECT 1 USE other."""


def _unknown_query(words: Words) -> Effect:
    if any(word[0] == "#" for word in words):
        return alters("a temporary table")
    sets = 1 if words[0] == "update" else 0
    if words.count("set") > sets or "into" in words[2:] or not _SUSPECT.isdisjoint(words):
        return UNKNOWN
    return NOTHING


def _unknown_create(words: Words) -> Effect:
    kind = temporary_kind(words)
    if kind or any(word[0] == "#" for word in words):
        return alters(f"a temporary {kind or 'table'}")
    return UNKNOWN


def _unknown_set(words: Words) -> Effect:
    return UNKNOWN if words[1:2] in (["local"], ["transaction"]) else alters(named("SET", words, 1))


def _unknown_alter(words: Words) -> Effect:
    return alters("ALTER SESSION") if words[1:2] == ["session"] else UNKNOWN


UNKNOWN_SERVER: Final[dict[str, Verb]] = {
    **dict.fromkeys(("select", "insert", "update", "delete"), _unknown_query),
    **{
        word: alters(word.upper())
        for word in names(
            "attach deallocate detach discard exec execute handler listen load lock pragma prepare "
            "reset unlisten unlock use"
        )
    },
    "alter": _unknown_alter,
    "begin": Effect(harmless=False, begins=True),
    "commit": Effect(harmless=False, ends=True),
    "create": _unknown_create,
    "rollback": lambda words: _rollback(words)._replace(harmless=False),
    "set": _unknown_set,
    "start": Effect(harmless=False, begins=True),
}
