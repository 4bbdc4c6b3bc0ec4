"""Django on PostgreSQL, by psycopg 3."""
