"""Cuts SQL into the words that say what a statement does.

It knows what each server takes for a comment, a literal, a quoted name and a placeholder, and drops
all that cannot matter: literals, numbers, operators, placeholders.  What is left is

    set, users, pg_catalog.lower    a word or a qualified name, in lower case
    "Users", `users`, [users]       a quoted name, alone or in a qualified one; never a keyword
    ( or ()                         a parenthesis that opens; () if nothing at all is in it
    ) ; , =                         a comma only if a name follows; = for SQLite only
    @a, @@b, :=                     MySQL's variables

What statements mean is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

# Every repetition is possessive (`*+`): no text, however broken, costs more than a pass or two.
_SPACE: Final = r"[ \t\n\r\f\v]*+"
# Letters beyond ASCII are parts of names for every server, as are signs and spaces beyond ASCII.
_FIRST: Final = r"[A-Za-z_\x80-\U0010ffff]"
_WORD: Final = _FIRST + r"[A-Za-z0-9_$\x80-\U0010ffff]*+"
_PLAIN: Final = r"'[^']*+(?:''[^']*+)*+'?"
_ESCAPED: Final = r"'(?:[^'\\]++|\\.|'')*+(?:'|\\?\Z)"
_DOUBLE: Final = r'"[^"]*+(?:""[^"]*+)*+"?'
_DOUBLE_ESCAPED: Final = r'"(?:[^"\\]++|\\.|"")*+(?:"|\\?\Z)'
_BACKQUOTED: Final = r"`[^`]*+(?:``[^`]*+)*+`?"
_DOLLARS: Final = rf"\$(?:{_FIRST}[A-Za-z0-9_\x80-\U0010ffff]*+)?\$"
# Within PostgreSQL's E'', a literal goes on in the same manner after a line break.
_E_STRING: Final = rf"[eE]{_ESCAPED}(?:[ \t\f\v]*+[\n\r]{_SPACE}{_ESCAPED})*+"
_PREFIXED: Final = rf"[bBnNxX]{_PLAIN}|[uU]&{_PLAIN}"

_PLACEHOLDERS: Final = (
    r"%(?:\([^()@;]*+\)[A-Za-z]|[sbtd](?![A-Za-z0-9_]))?+",
    # Not Oracle's or SQLite's :name but an expression, if a call follows: a[1:f(2)].
    rf":(?!=)(?:{_WORD}(?!{_SPACE}\())?+",
    r"\$[0-9]*+",
)
_NUMBER: Final = r"[0-9][0-9_.]*+(?:[eE][+-]?[0-9]++)?+"
# A name may begin with a digit; if it is called it is told, if not it does not matter.
_MYSQL_NUMBER: Final = (
    rf"[0-9]++\.[0-9]*+(?:[eE][+-]?[0-9]++)?+|[0-9][A-Za-z0-9_$\x80-\U0010ffff]*+(?!{_SPACE}\()"
)
_OTHER: Final = r"""[^A-Za-z0-9_\x80-\U0010ffff"'`\[();,$%:@=#.]++|\."""


@dataclass(frozen=True)
class Lexer:
    """How one server reads."""

    patterns: tuple[str, str, str, str, str]
    """Compiled when they are needed: all of all servers take a quarter of a second."""
    nested: bool
    """Whether comments nest."""
    otherwise: Lexer | None = None
    """The same for a session in which ``\\`` means the other thing in a literal."""

    @cached_property
    def words(self) -> re.Pattern[str]:
        """A word, after what is none."""
        return re.compile(self.patterns[0], re.DOTALL)

    @cached_property
    def suspects(self) -> re.Pattern[str]:
        """What makes the slower look for comments worth it."""
        return re.compile(self.patterns[1])

    @cached_property
    def opening(self) -> re.Pattern[str]:
        """Skips what is no comment, and ends with what opens one."""
        return re.compile(self.patterns[2], re.DOTALL)

    @cached_property
    def inside(self) -> re.Pattern[str]:
        """The same within MySQL's executable comments, where ``*/`` ends one."""
        return re.compile(self.patterns[3], re.DOTALL)

    @cached_property
    def line_end(self) -> re.Pattern[str]:
        """What ends a comment that began with ``--``."""
        return re.compile(self.patterns[4])

    def cut(self, text: str, *, executed: bool = True) -> list[str]:
        """Return the words of a text; `executed` tells whether MySQL's ``/*! ... */`` is."""
        if self.suspects.search(text):
            text = self._without_comments(text, executed)
        words = self.words.findall(text)
        while words and not words[-1]:
            words.pop()  # the end of the text
        if text.isascii():
            return list(map(str.lower, words))
        # The Kelvin sign in lower case is a k, but to no server.
        return [word.lower() if word.isascii() else word for word in words]

    def _without_comments(self, text: str, executed: bool) -> str:
        """Return the text with a space for each comment, and '' for each dollar-quoted literal."""
        parts: list[str] = []
        depth = at = 0  # depth: how many executable comments we are in
        while found := (self.inside if depth else self.opening).match(text, at):
            opener, end = found[1], found.end()
            parts.append(text[at : found.start(1)])
            if opener.startswith(("--", "#")):
                end = _end_of_line(text, end, self.line_end)
            elif opener == "*/":
                depth -= 1
            elif opener.startswith("$"):
                close = text.find(opener, end)
                end = len(text) if close < 0 else close + len(opener)
                parts.append("''")
            elif len(opener) > 2 and executed:
                depth += 1
            else:
                # A comment that is executed by some servers may have others in it.
                end = _end_of_comment(text, end, nested=self.nested or len(opener) > 2)
            parts.append(" ")
            at = end
        parts.append(text[at:])
        return "".join(parts)


_COMMENT_MARK: Final = re.compile(r"/\*|\*/")


def _end_of_line(text: str, at: int, ends: re.Pattern[str]) -> int:
    found = ends.search(text, at)
    return len(text) if found is None else found.start()


def _end_of_comment(text: str, at: int, *, nested: bool) -> int:
    if not nested:
        close = text.find("*/", at)
        return len(text) if close < 0 else close + 2
    depth = 1
    for mark in _COMMENT_MARK.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return len(text)


def _lexer(
    *,
    literals: str,
    names: str,  # quoted ones
    number: str = _NUMBER,
    more: str = "(?!)",  # words that only this server has
    ignored: str,  # signs that are no words for this server
    comments: str = r"--|/\*",
    line_end: str = r"\n",
    nested: bool = False,
    otherwise: Lexer | None = None,
) -> Lexer:
    # Rows of constants after the first: a large INSERT is as short as a small one.
    row = rf",{_SPACE}\((?:[0-9 \t\n\r,.+\-?]++|{literals}|%s|(?:NULL|null|TRUE|true|FALSE|false)\b)*+\)"
    comma = rf",(?={_SPACE}[0-9'%?$(:+\-])"  # tells nothing unless a name follows
    skipped = "|".join((_OTHER, literals, number, row, comma, *_PLACEHOLDERS, ignored))
    name = f"(?:{_WORD}|{names})"
    chain = rf"[uU]&{_DOUBLE}|{name}(?:{_SPACE}\.{_SPACE}{name})*+|[0-9]++{_WORD}"
    words = rf"(?:{skipped})*+({chain}|\({_SPACE}\)|[();,=]|{more}|\Z)"
    opening = _up_to(comments, literals, names)
    inside = _up_to(rf"{comments}|\*/", literals, names)
    return Lexer((words, comments, opening, inside, line_end), nested, otherwise)


def _up_to(marks: str, literals: str, names: str) -> str:
    # Words are skipped whole: there is no dollar quote in a$b$c.
    return rf"(?:{literals}|{_WORD}|{names}|[ \t\n\r0-9(),;.=<>]++|(?!{marks}).)*+({marks})"


def _postgresql(plain: str, otherwise: Lexer | None = None) -> Lexer:
    return _lexer(
        literals=rf"{plain}|{_E_STRING}|{_PREFIXED}",
        names=_DOUBLE,
        ignored=r"[@=`\[#]|:=",
        comments=rf"--|/\*|{_DOLLARS}",
        line_end=r"[\n\r]",
        nested=True,
        otherwise=otherwise,
    )


def _mysql(single: str, double: str, otherwise: Lexer | None = None) -> Lexer:
    variable = r"[A-Za-z0-9_.$\x80-\U0010ffff]"
    return _lexer(
        # With ANSI_QUOTES "f" is a name; it matters if it is called.
        literals=rf"{single}|(?>{double})(?!{_SPACE}[(.])",
        names=rf"{_BACKQUOTED}|{double}",
        number=_MYSQL_NUMBER,
        more=rf"@@?+(?:{variable}++|{single}|{double}|{_BACKQUOTED})|:=",
        ignored=rf"""[=\[#]|@(?!@?+(?:{variable}|['"`]))""",
        comments=r"--(?=[\x00-\x20]|\Z)|\#|/\*(?:M?![0-9]{0,6}+)?+",
        line_end=r"[\n\0]",
        otherwise=otherwise,
    )


_BRACKETED: Final = r"\[[^\]]*+\]?"

POSTGRESQL: Final = _postgresql(_PLAIN, otherwise=_postgresql(_ESCAPED))
MYSQL: Final = _mysql(_ESCAPED, _DOUBLE_ESCAPED, otherwise=_mysql(_PLAIN, _DOUBLE))
SQLITE: Final = _lexer(
    literals=_PLAIN,
    names=rf"{_DOUBLE}|{_BACKQUOTED}|{_BRACKETED}",
    ignored="[@:#]",
)
UNKNOWN: Final = _lexer(
    literals=_PLAIN,
    names=rf"{_DOUBLE}|{_BACKQUOTED}|{_BRACKETED}",
    more=rf"\#{_WORD}",
    ignored=rf"[@=]|:=|\#(?!{_FIRST})",
    otherwise=_lexer(
        literals=_ESCAPED,
        names=rf"{_DOUBLE}|{_BACKQUOTED}|{_BRACKETED}",
        more=rf"\#{_WORD}",
        ignored=rf"[@=]|:=|\#(?!{_FIRST})",
    ),
)
