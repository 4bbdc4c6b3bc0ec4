"""What the tests ask for."""

import asyncio
import os
import threading
import time

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse

from connpool.integrations.django import pools

from .models import Item


def session() -> int:
    """Return what the server calls our session."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_backend_pid()" if connection.vendor == "postgresql" else "SELECT connection_id()"
        )
        return cursor.fetchone()[0]


def items(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {"names": [item.name for item in Item.objects.order_by("id")[:10]], "pid": os.getpid()}
    )


async def async_items(request: HttpRequest) -> JsonResponse:
    names = [item.name async for item in Item.objects.order_by("id")[:10]]
    return JsonResponse({"names": names, "pid": os.getpid()})


def spread(request: HttpRequest) -> JsonResponse:
    """Ask, do something else, ask again."""
    count = Item.objects.count()
    time.sleep(float(request.GET.get("seconds", "0.05")))
    return JsonResponse({"count": count, "again": Item.objects.count()})


async def async_spread(request: HttpRequest) -> JsonResponse:
    count = await Item.objects.acount()
    await asyncio.sleep(float(request.GET.get("seconds", "0.05")))
    return JsonResponse({"count": count, "again": await Item.objects.acount()})


def add(request: HttpRequest, name: str) -> JsonResponse:
    with transaction.atomic():
        before = session()
        item = Item.objects.create(name=name)
        return JsonResponse({"id": item.pk, "same": before == session()})


def threads(request: HttpRequest) -> JsonResponse:
    """Let threads ask that do not close what they have opened."""

    def work() -> None:
        Item.objects.count()

    for _ in range(10):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return JsonResponse({"done": True})


def pool(request: HttpRequest) -> JsonResponse:
    figures = [pool.stats(reset_peaks=False) for pool in pools()]
    return JsonResponse(
        {
            "pid": os.getpid(),
            "pools": len(figures),
            "size": sum(figure.size for figure in figures),
            "idle": sum(figure.idle for figure in figures),
            "in_use": sum(figure.in_use for figure in figures),
            "waiting": sum(figure.waiting for figure in figures),
        }
    )
