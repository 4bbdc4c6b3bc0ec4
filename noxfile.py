"""Everything that CI runs, each step runnable alone: `nox -s lint`, `nox -s tests -- -k fair`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
# The full suite comes last, so that its closing line stands near the end of the output.
nox.options.sessions = ["lint", "types", "docs", "package", "tests"]

HERE = Path(__file__).parent
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
QUICK = "not stress and not chaos and not server and not bytecode"
# Two at a time, each with its own servers, a class or a module at once.
TOGETHER = ("-n", "2", "--dist", "loadscope")

# Prove rules that no interpreter changes, or the tests themselves: once is enough.
ONCE = [f"--ignore=tests/engine/test_{name}.py" for name in ("machine", "model", "mutations", "simulation")]

# Before pytest's time limits run: install what server tests start, or say what is missing.
SERVERS = "from servers.install import PACKAGES, require; print(*map(require, PACKAGES), sep='\\n')"


def pyenv_directories(version: str) -> list[str]:
    """List where pyenv keeps a version; its shims also exist for versions that do not run."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return [str(path) for path in sorted(root.glob(f"versions/{version}.*/bin"))]


def runs(version: str) -> bool:
    """Say whether an interpreter can be found and run, and make it findable for nox."""
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *pyenv_directories(version)])
    programs = [Path(d, f"python{version}") for d in os.environ["PATH"].split(os.pathsep)]
    return any(
        p.is_file() and not subprocess.call([p, "-c", ""], stderr=subprocess.DEVNULL) for p in programs
    )


def interpreters() -> list[str]:
    """Return the supported versions that run on this machine, the running one last."""
    supported = nox.project.python_versions(nox.project.load_toml(HERE / "pyproject.toml"))
    return [*(v for v in supported if v != RUNNING and runs(v)), RUNNING]


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    session.install("ruff")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, and those that its users see."""
    session.install("--editable", ".[test]")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error, also a reference that leads nowhere."""
    session.install(".[docs]")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", "docs", "docs/_build/html")


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel; install the wheel where there is nothing else; import it."""
    session.install("hatchling")
    dist, clean = Path(session.create_tmp(), "dist"), Path(session.create_tmp(), "clean")
    shutil.rmtree(dist, ignore_errors=True)
    session.run("hatchling", "build", "-d", str(dist))
    session.run(sys.executable, "-m", "virtualenv", "-q", "--clear", str(clean), external=True)
    python = str(clean / ("Scripts" if os.name == "nt" else "bin") / "python")
    wheel = next(dist.glob("*.whl"))
    session.run(python, "-m", "pip", "install", "-q", "--no-deps", str(wheel), external=True)
    session.run(python, "-I", "-m", "pip", "check", external=True)
    session.run(python, "-I", "-c", "import connpool; print(connpool.__version__)", external=True)


@nox.session(python=interpreters())
def tests(session: nox.Session) -> None:
    """Run the whole suite here, the quick part of it on the other interpreters."""
    session.install(".[test]")
    if session.posargs:
        session.run("pytest", *session.posargs)
    elif session.python != RUNNING:
        session.run("pytest", *TOGETHER, *ONCE, "-m", QUICK)
    else:
        session.run("python", "-c", SERVERS, env={"PYTHONPATH": "tests"})
        # Apart: coverage traces, too, and two tracers in one thread do not bear each other.
        session.run("pytest", "-n", "2", "-m", "bytecode")
        session.run("pytest", *TOGETHER, "-m", QUICK)
        session.run("coverage", "run", "-m", "pytest", *ONCE, "-m", QUICK, "tests/engine")
        session.run("coverage", "report", "--include=*/engine/*", "--fail-under=100")
        session.run("pytest", *TOGETHER, "-m", "server and not stress and not chaos and not bytecode")
        # What waits for servers to come back may do so side by side; what loads the machine stays alone.
        session.run("pytest", *TOGETHER, "-m", "chaos and not stress and not bytecode")
        session.run("pytest", "-m", "stress and not bytecode")


@nox.session
def chaos(session: nox.Session) -> None:
    """Run what kills, restarts and cuts off servers, and more simulated outages than the whole suite has."""
    session.install(".[test]")
    session.run("python", "-c", SERVERS, env={"PYTHONPATH": "tests"})
    env = {"CONNPOOL_OUTAGES": os.environ.get("CONNPOOL_OUTAGES", "10000")}
    session.run("pytest", "-m", "chaos", "tests/chaos", *session.posargs)
    session.run("pytest", "-k", "outage", "tests/engine", "--timeout", "3600", env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the other pools; a report, never a gate."""
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
