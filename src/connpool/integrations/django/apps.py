"""The application, for ``INSTALLED_APPS``: it brings ``manage.py pool_status``.  The backends do without."""

from __future__ import annotations

from django.apps import AppConfig


class Connpool(AppConfig):  # type: ignore[misc] # Django has no types
    """connpool's management command."""

    name = "connpool.integrations.django"
    label = "connpool"
    verbose_name = "connpool"
