"""The PEP 249 face of a pool."""
