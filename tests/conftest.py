"""pytest explains the asserts of test files only, unless it is told of others."""

import pytest

pytest.register_assert_rewrite("contracts", "changes", "fuzz", "plain_reader", "power")
