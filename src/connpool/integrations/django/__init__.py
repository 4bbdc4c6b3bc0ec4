"""Django (https://www.djangoproject.com): database backends whose connections come from a pool.

::

    DATABASES = {
        "default": {
            "ENGINE": "connpool.integrations.django.postgresql",  # or mysql, or sqlite3
            "NAME": "app",
            "OPTIONS": {"pool": {"max_size": 5}},
        }
    }

Each is Django's own backend in all but how it comes by a connection: where Django would open one it
borrows, and where Django would close it, at the end of a request, it gives back.  One pool serves all
threads of a process; there is one for each set of parameters that lead to a server, so test databases
and aliases made at run time need nothing special.

Not known here: how a pool works.  Everything below uses its public API only.
"""

from __future__ import annotations

from .registry import pools

__all__ = ("pools",)
