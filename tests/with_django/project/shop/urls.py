from django.urls import path

from . import views

urlpatterns = [
    path("items", views.items),
    path("async-items", views.async_items),
    path("spread", views.spread),
    path("async-spread", views.async_spread),
    path("add/<name>", views.add),
    path("threads", views.threads),
    path("pool", views.pool),
]
