"""The one place where the version stands; the build and the changelog follow it."""

__version__ = "0.1.0"
