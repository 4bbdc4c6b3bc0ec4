"""A pool with figures of every kind in it."""

from collections.abc import Iterator

import pytest
from servers.clocks import wait_until

from connpool import ConnectionPool
from connpool.testing import FakeConnection
