"""The settings of the project; what varies comes from the environment."""

import json
import os
import sys

if os.environ.get("SHOP_HIDE"):
    sys.modules[os.environ["SHOP_HIDE"]] = None  # type: ignore[assignment] # as if it were not installed

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "shop",
    "connpool.integrations.django",
]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = json.loads(os.environ["SHOP_DATABASES"])
LOGGING_CONFIG = "logging.config.dictConfig" if "SHOP_LOGS" in os.environ else None
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
