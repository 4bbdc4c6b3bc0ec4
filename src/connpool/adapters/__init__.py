"""One module per driver; each imports its driver only, so nothing is imported here."""
