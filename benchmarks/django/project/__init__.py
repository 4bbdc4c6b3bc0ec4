"""The site that is measured: one table, two views."""

ITEMS = 1000  # in the table
