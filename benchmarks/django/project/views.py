"""What the clients ask for."""

import random
import time

from django.http import HttpRequest, JsonResponse

from . import ITEMS
from .models import Item

ROWS = 10  # on a page
PAUSE = 0.05  # seconds of something else between two queries: another service's answer, say


def rows(_request: HttpRequest) -> JsonResponse:
    """Show ten rows: one query."""
    first = random.randrange(ITEMS - ROWS)
    found = Item.objects.filter(id__gt=first).order_by("id")[:ROWS]
    return JsonResponse({"rows": [[item.id, item.name, item.price] for item in found]})


def pause(_request: HttpRequest) -> JsonResponse:
    """Make a query, do something else, make another query."""
    first = Item.objects.get(pk=random.randrange(1, ITEMS))
    time.sleep(PAUSE)
    second = Item.objects.get(pk=random.randrange(1, ITEMS))
    return JsonResponse({"rows": [first.name, second.name]})
