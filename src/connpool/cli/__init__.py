"""The command line: ``connpool demo``, ``connpool doctor`` and ``connpool size``.

It needs typer and rich, which the library does not: they are imported by `main` and not before.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the ``connpool`` command."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as exc:
        sys.exit(f"connpool: {exc.name} is missing; run: pip install 'dbapi-connpool[cli]'")
    from .app import app

    app(prog_name="connpool")
