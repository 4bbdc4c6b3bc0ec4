"""`ConnectionPool` under gevent."""
