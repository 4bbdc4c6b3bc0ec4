"""What `import connpool` costs, and what it offers."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import connpool

LOADED = """
import sys
before = set(sys.modules)
import connpool
print(*sorted(set(sys.modules) - before))
"""


def modules_loaded_by_import() -> set[str]:
    """Import connpool in a fresh interpreter; -S keeps out what .pth files import at start-up."""
    environment = {**os.environ, "PYTHONPATH": str(Path(connpool.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", LOADED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy_and_nobody_elses_code() -> None:
    loaded = modules_loaded_by_import()
    assert "connpool" in loaded
    assert not loaded & {"asyncio", "logging", "ssl", "sqlite3"}
    packages = {name.partition(".")[0] for name in loaded}
    assert packages - set(sys.stdlib_module_names) == {"connpool"}


def test_import_loads_no_adapter() -> None:
    adapters = {name for name in modules_loaded_by_import() if name.startswith("connpool.adapters.")}
    assert not adapters


def constants_classes_the_rest(name: str) -> tuple[int, str]:
    """Sort as ruff does, which also keeps the order in lint."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_sorted_and_has_no_duplicates() -> None:
    assert list(connpool.__all__) == sorted(set(connpool.__all__), key=constants_classes_the_rest)


def home(value: object) -> str:
    """Return the top-level package that a value, or its class, was defined in."""
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0]
    return str(getattr(value, "__module__", type(value).__module__)).partition(".")[0]


def test_all_names_everything_that_is_public() -> None:
    public = {
        name
        for name, value in vars(connpool).items()
        if not name.startswith("_") and home(value) == "connpool"
        # A submodule becomes an attribute as soon as anybody imports it.
        if not isinstance(value, ModuleType) or name in connpool.__all__
    }
    assert public <= set(connpool.__all__)


def test_every_public_name_is_our_own() -> None:
    names = [name for name in connpool.__all__ if not name.startswith("__")]
    foreign = {name for name in names if home(getattr(connpool, name)) != "connpool"}
    assert not foreign


def test_dir_offers_every_public_name_also_the_lazy_ones() -> None:
    assert set(connpool.__all__) <= set(dir(connpool))


def test_version_is_the_one_of_the_distribution() -> None:
    from connpool._version import __version__

    assert connpool.__version__ == __version__


def test_package_tells_type_checkers_that_it_is_typed() -> None:
    assert Path(connpool.__file__).with_name("py.typed").is_file()
