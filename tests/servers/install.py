"""Finding the programs that the servers need, and installing them where that is possible.

A program that is missing is a failure which names the command to run, never a silent skip. As root
on Debian and its relatives the command is run here, once.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from servers.process import ServerError

# Of MariaDB the packages without a service; mariadb-install-db calls my_print_defaults, which its
# own package does not bring. OpenSSL only makes certificates, and mysqldump copies databases.
PACKAGES: Final = {
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
    "mysqldump": "mariadb-client",
    "pgbouncer": "pgbouncer",
    "openssl": "openssl",
}
SERVICES: Final = {"pgbouncer": "pgbouncer"}  # that a package starts by itself where there is an init

Run = Callable[[Sequence[str]], object]


class MissingServer(ServerError):
    """A program is not installed; the message says which command installs it."""


def find_program(program: str) -> Path | None:
    """Return where a program is; servers are in sbin, which is not on everybody's PATH."""
    directories = [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    found = shutil.which(program, path=os.pathsep.join(directories))
    return Path(found) if found else None


def requirements() -> dict[str, Path | None]:
    """Return every program that may be needed, and where it is; None: it is missing."""
    return {program: find_program(program) for program in PACKAGES}


def install_commands(packages: Sequence[str]) -> list[list[str]]:
    """Return the commands that install Debian packages."""
    # Two suites may start at the same time on one machine: wait for the lock instead of failing.
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *lock, *packages]
    return [["apt-get", "update"], install]


def require(program: str, *, may_install: bool | None = None) -> Path:
    """Return where a program is; install it if it is missing and we can.

    Args:
        program: one of `PACKAGES`.
        may_install: None decides: root, with apt-get at hand.

    Raises:
        MissingServer: it is missing, and could not be installed.
    """
    if found := find_program(program):
        return found
    if may_install is None:
        may_install = os.geteuid() == 0 and find_program("apt-get") is not None
    if may_install:
        install(missing_packages())
        if found := find_program(program):
            return found
    raise MissingServer(explain_missing(program))


def missing_packages() -> list[str]:
    """Return the Debian packages of all programs that are missing."""
    return sorted({PACKAGES[name] for name, path in requirements().items() if path is None})


def explain_missing(program: str) -> str:
    """Say what is missing, and the exact command that installs it and whatever else is missing."""
    commands = install_commands(sorted({PACKAGES[program], *missing_packages()}))
    as_root = " && ".join(shlex.join(["sudo", *command]) for command in commands)
    return f"{program} is not installed. On Debian or Ubuntu run: {as_root}"


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-2000:]
        raise MissingServer(f"`{shlex.join(command)}` ended with {done.returncode}:\n{output}")


def install(packages: Sequence[str], *, run: Run = _run) -> None:
    """Install Debian packages, and leave none of their services running.

    Without an init (in a container) Debian starts nothing. With one it does, and what it started
    for us we stop through the same init, instead of putting a policy-rc.d into the system.
    """
    for command in install_commands(packages):
        run(command)
    for package in packages:
        if package in SERVICES and find_program("service"):
            run(["service", SERVICES[package], "stop"])
