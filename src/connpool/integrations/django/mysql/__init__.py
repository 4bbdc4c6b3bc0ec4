"""Django on MySQL and MariaDB, by mysqlclient, or by PyMySQL where that is not installed."""
