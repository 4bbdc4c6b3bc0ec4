"""What the documentation says is run, and what must not be missing from it is looked for.

Every fenced ``python`` block of the README and of `docs/` is executed, those of one page in one
namespace, one after the other.  If a ``text`` block follows, it is what the code must print; ``...`` in it
stands for anything.  A block after ``<!-- skip: reason -->`` is not run.

The pages connect as a reader would, with ``dbname=app`` or to MySQL on this machine.  Here that leads to
the test suite's own servers.
"""

import contextlib
import doctest
import functools
import gc
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

import connpool
from connpool import adapter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"

MOST_SKIPPED = 3
"""Blocks that are not run, on all pages together: each is a promise that nobody keeps."""


@dataclass
class Block:
    """A piece of code on a page, and what it must print."""

    line: int
    code: str
    printed: str | None
    skipped: bool


def fence(lines: list[str], at: int) -> tuple[str, list[str]] | None:
    """Return the language and the lines of the fenced block that begins at a line, if one does."""
    if at < len(lines) and (opening := re.fullmatch(r"```(\w+)", lines[at])):
        return opening[1], list(takewhile(lambda line: line != "```", lines[at + 1 :]))
    return None


def blocks(text: str) -> Iterator[Block]:
    """Yield the Python blocks of a page, in order."""
    lines = text.splitlines()
    for at in range(len(lines)):
        block = fence(lines, at)
        if block is None or block[0] != "python":
            continue
        before = next((line for line in reversed(lines[:at]) if line), "")
        after = at + len(block[1]) + 3  # two fences and an empty line
        printed = fence(lines, after)
        yield Block(
            line=at + 2,
            code="\n".join(block[1]) + "\n",
            printed="\n".join(printed[1]) + "\n" if printed and printed[0] == "text" else None,
            skipped=re.fullmatch(r"<!-- skip: .+ -->", before) is not None,
        )


def servers_of(page: Path) -> list[str]:
    """Return the fixtures of the servers that a page connects to."""
    code = "".join(block.code for block in blocks(page.read_text()) if not block.skipped)
    wanted = {"postgresql": "psycopg", "mariadb": "pymysql"}
    return [server for server, driver in wanted.items() if driver in code]


def parameter(page: Path) -> Any:
    marks = [pytest.mark.server] if servers_of(page) else []
    return pytest.param(page, marks=marks, id=str(page.relative_to(ROOT)))


# -- the code runs -------------------------------------------------------------------------------------


@pytest.fixture
def readers_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let a page write into an empty directory, and register adapters that nobody else sees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter, "_DRIVERS", adapter._DRIVERS.copy())
    monkeypatch.setattr(adapter, "_SCHEMES", adapter._SCHEMES.copy())
    return monkeypatch


def lead_to_postgresql(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """Let libpq find the server by itself, as it would on a reader's machine."""
    monkeypatch.setenv("PGHOST", server.host)
    monkeypatch.setenv("PGPORT", str(server.port))
    monkeypatch.setenv("PGUSER", server.user)


def lead_to_mariadb(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """Let every connection of PyMySQL go to the server, whatever host it names."""
    from pymysql.connections import Connection

    connect = Connection.__init__

    @functools.wraps(connect)
    def to_the_server(self: Any, **params: Any) -> None:
        connect(self, **{**params, **server.params})

    monkeypatch.setattr(Connection, "__init__", to_the_server)


LEAD_TO = {"postgresql": lead_to_postgresql, "mariadb": lead_to_mariadb}


@pytest.mark.parametrize("page", [parameter(page) for page in PAGES])
def test_page_says_what_happens(
    page: Path, readers_machine: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for server in servers_of(page):
        LEAD_TO[server](readers_machine, request.getfixturevalue(server))
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for block in blocks(page.read_text()):
            if not block.skipped:
                run(page, block, namespace)
    finally:
        namespace.clear()
        gc.collect()  # the pools of the page close what they have


def run(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Run a block; compare what it prints."""
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)
    printed = out.getvalue()
    where = f"{page.relative_to(ROOT)}:{block.line}"
    if block.printed is None:
        assert not printed, f"{where} prints something that the page does not show:\n{printed}"
        return
    alike = doctest.OutputChecker().check_output(block.printed, printed, doctest.ELLIPSIS)
    assert alike, f"{where} prints\n{printed}\nand the page shows\n{block.printed}"


def test_few_blocks_are_skipped() -> None:
    skipped = [
        f"{page.relative_to(ROOT)}:{block.line}"
        for page in PAGES
        for block in blocks(page.read_text())
        if block.skipped
    ]
    assert len(skipped) <= MOST_SKIPPED, skipped


# -- nothing is missing --------------------------------------------------------------------------------


def test_every_option_is_on_the_options_page() -> None:
    page = (REFERENCE / "options.md").read_text()
    missing = [option.name for option in fields(connpool.PoolOptions) if f"`{option.name}`" not in page]
    assert not missing
    assert "autoclass:: connpool.PoolOptions\n   :members:" in page


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    missing = [
        name
        for name in connpool.__all__
        if not re.search(rf":: connpool\.{re.escape(name)}$", reference, re.MULTILINE)
    ]
    assert not missing


def test_every_reason_is_explained() -> None:
    page = (REFERENCE / "stats.md").read_text()
    missing = [reason.value for reason in connpool.Reason if f"\n| `{reason.value}` |" not in page]
    assert not missing


def test_every_error_has_an_entry() -> None:
    page = (REFERENCE / "errors.md").read_text()
    names = [name for name, value in vars(connpool.errors).items() if name.startswith("Pool")]
    missing = [name for name in names if f"autoexception:: connpool.{name}\n" not in page]
    assert names
    assert not missing


def test_every_page_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text().splitlines()
    files = [page for page in docs.rglob("*.md") if not page.name.startswith("_")]  # those are parts of pages
    pages = [page.relative_to(docs).with_suffix("").as_posix() for page in files]
    assert set(pages) - {"index"} <= set(index)


def test_readme_names_both_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    for command in ("make demo", "make test"):
        assert any(line.split("#")[0].strip().removeprefix("$ ") == command for line in lines), command


def test_links_of_the_readme_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert targets
    assert not missing


# -- nobody is sent to somebody else's package -----------------------------------------------------------

TEXT = {".cfg", ".ini", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ".yml", ""}
SOMEBODY_ELSES = re.compile(r"pip\d? +install +(?:-\S+ +)*['\"]?connpool\b")


def texts() -> Iterator[Path]:
    """Yield the texts of the repository, and not what tools have left in it."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        left_behind = {"__pycache__", "_build", "build", "dist", ".git"} & set(parts)
        hidden = any(part.startswith(".") for part in parts) and parts[0] not in (".github", ".ci")
        if path.is_file() and path.suffix in TEXT and not left_behind and not hidden:
            yield path


def test_nobody_is_told_to_install_somebody_elses_package() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in texts()
        if SOMEBODY_ELSES.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install {}", True),
        ("pip install -U '{}[psycopg]'", True),
        ("pip3 install {}==0.1", True),
        ("pip install dbapi-{}", False),
        ("pip install 'dbapi-{}[psycopg]'", False),
        ("pip install {}s", False),
    ],
)
def test_the_wrong_line_is_recognised(text: str, wrong: bool) -> None:
    assert bool(SOMEBODY_ELSES.search(text.format("connpool"))) == wrong
