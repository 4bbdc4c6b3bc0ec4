"""Settings without anything that is not measured: no middleware, no sessions, no templates."""

import json
import os

SECRET_KEY = "not a secret: nobody logs in"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["benchmarks.django.project"]
MIDDLEWARE: list[str] = []
ROOT_URLCONF = "benchmarks.django.project.urls"
WSGI_APPLICATION = "benchmarks.django.project.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING_CONFIG = None
USE_TZ = True
DATABASES = {"default": json.loads(os.environ["BENCHMARK_DATABASE"])}

if os.environ.get("BENCHMARK_DRIVER") == "PyMySQL":
    import pymysql

    pymysql.install_as_MySQLdb()  # type: ignore[no-untyped-call, unused-ignore]
