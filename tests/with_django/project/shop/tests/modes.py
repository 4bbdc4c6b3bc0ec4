"""What a project's own tests look like; run by ``manage.py test``, in every mode that it has."""

import threading
import urllib.request

from django.db import connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from ..models import Item


class Rollbacks(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.item = Item.objects.create(name="one")

    def test_the_data_of_the_class_is_there(self) -> None:
        assert Item.objects.count() == 1
        Item.objects.create(name="two")

    def test_what_another_test_wrote_is_not(self) -> None:
        assert Item.objects.count() == 1

    def test_callbacks_run_when_the_test_says_so(self) -> None:
        ran: list[int] = []
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: ran.append(1))
        assert ran == [1]

    def test_a_view_answers_within_the_test_s_transaction(self) -> None:
        assert self.client.get("/items").json()["names"] == ["one"]


class Commits(TransactionTestCase):
    serialized_rollback = True

    def test_what_is_committed_is_seen_by_another_thread(self) -> None:
        Item.objects.create(name="committed")
        seen: list[int] = []

        def look() -> None:
            seen.append(Item.objects.count())  # and closes nothing

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
        assert seen == ([1] if not in_memory else seen)

    def test_the_table_was_emptied_in_between(self) -> None:
        assert Item.objects.count() == 0

    def test_a_lock_keeps_another_thread_out(self) -> None:
        if not connection.features.has_select_for_update_nowait:
            self.skipTest("nothing to lock")
        Item.objects.create(name="locked")
        errors: list[Exception] = []

        def take() -> None:
            try:
                with transaction.atomic():
                    list(Item.objects.select_for_update(nowait=True))
            except Exception as exc:
                errors.append(exc)
            finally:
                connections.close_all()

        with transaction.atomic():
            list(Item.objects.select_for_update())
            thread = threading.Thread(target=take)
            thread.start()
            thread.join()
        assert [type(exc).__name__ for exc in errors] == ["OperationalError"]


class Live(LiveServerTestCase):
    def test_a_live_server_sees_what_the_test_wrote(self) -> None:
        Item.objects.create(name="live")
        for _ in range(3):
            with urllib.request.urlopen(f"{self.live_server_url}/items") as response:
                assert b"live" in response.read()
