import pytest

pytest.register_assert_rewrite("facade.compliance", "facade.sites")
