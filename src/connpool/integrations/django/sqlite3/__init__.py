"""Django on SQLite."""
