from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=50, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=1)
    made = models.DateTimeField(auto_now_add=True)
    tags = models.JSONField(default=dict)
