"""What a figure depends on: the machine and the versions; and an environment for the other connpool."""

import importlib.util
import os
import platform
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYPI = "connpool==1.0.14"


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def load() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def software(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the drivers and of *more* distributions, as far as they are here."""
    found = {"Python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in ("psycopg", "psycopg-binary", "PyMySQL", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def here() -> dict[str, str]:
    """Return the variables for workers that use this environment: they find what we find."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}


def alone() -> dict[str, str]:
    """Return the variables for workers in the environment made for them: of ours only `benchmarks`."""
    return {"PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}


def cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "dbapi-connpool" / "benchmarks"


def pypi_python(*, make: bool) -> Path | str:
    """Return the interpreter that has PyPI's connpool, made if need be; or why there is none."""
    psycopg = version("psycopg")
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache() / f"{PYPI}-psycopg-{psycopg}-python-{python_version}".replace("==", "-")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = home / "complete"
    if complete.exists():
        return python
    if not make:
        return "not installed"
    if importlib.util.find_spec("ensurepip") is None:
        return "not installed: this Python cannot make virtual environments"
    venv.create(home, with_pip=True, clear=True)
    requirements = [PYPI, f"psycopg[binary]=={psycopg}"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *requirements], capture_output=True, check=False
    )
    if done.returncode:
        return f"not installed: pip could not install {' and '.join(requirements)}"
    complete.touch()
    return python
