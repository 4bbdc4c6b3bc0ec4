"""Exceptions that strike anywhere, as Ctrl-C does: no answer is another's, and no session is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import connpool
from facade.sites import Site, SiteOf
from facade.test_transactions import SHOWN

pytestmark = [pytest.mark.stress, pytest.mark.server]

SCRIPT = Path(__file__).with_name("strikes.py")


@pytest.fixture
def site(request: pytest.FixtureRequest, site_of: SiteOf) -> Site:
    return site_of(request.param)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("site", SHOWN, indirect=True)
def test_strikes_confuse_no_answer_and_lose_no_session(site: Site) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps({"driver": site.name, "arguments": site.arguments}),
        env={**os.environ, "PYTHONPATH": str(Path(connpool.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["wrong"], counts["lost"]) == (0, 0)
    assert counts["struck"] > 0
    assert counts["answered"] > 0
