"""What ``manage.py`` learns."""
