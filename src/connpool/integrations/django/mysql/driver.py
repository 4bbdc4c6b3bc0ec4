"""Django's MySQL backend, on mysqlclient or, where that is not installed, on PyMySQL.

Django imports ``MySQLdb``.  While it does, PyMySQL stands there under that name if nothing else does, and
afterwards no more: whoever asks for ``MySQLdb`` later gets the truth.  The user need not call
``pymysql.install_as_MySQLdb()``; whoever has called it has chosen PyMySQL.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from django.core.exceptions import ImproperlyConfigured

# What Django imports, by PyMySQL's names; its own modules, not copies of them.
_MODULES: Final = ("", ".constants", ".constants.CLIENT", ".constants.FIELD_TYPE", ".converters")


def import_backend() -> ModuleType:
    """Import Django's backend with the driver that there is."""
    if "MySQLdb" in sys.modules or importlib.util.find_spec("MySQLdb") is not None:
        with contextlib.suppress(ImportError):  # its library may be missing, or it is blocked
            importlib.import_module("MySQLdb")
            return importlib.import_module("django.db.backends.mysql.base")
    with _pymysql_in_its_place():
        return importlib.import_module("django.db.backends.mysql.base")


@contextlib.contextmanager
def _pymysql_in_its_place() -> Iterator[None]:
    try:
        found = {f"MySQLdb{name}": importlib.import_module(f"pymysql{name}") for name in _MODULES}
    except ImportError as exc:
        raise ImproperlyConfigured(
            "connpool.integrations.django.mysql needs mysqlclient or PyMySQL: neither can be imported"
        ) from exc
    before = {name: sys.modules[name] for name in found if name in sys.modules}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name in found:
            sys.modules.pop(name, None)
        sys.modules.update(before)
