"""One small table."""

from django.db import models


class Item(models.Model):
    """A row as a page shows them."""

    name = models.CharField(max_length=100)
    price = models.IntegerField()

    class Meta:
        db_table = "item"
