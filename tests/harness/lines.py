"""Marks for the tests of the conformance checklist.

A line marked K in the contract must equal stock, so its test also runs against the stock
scripts, which shows that the test is right. A line marked F must differ. ``runner`` is shared by
the tests of a module, and so is ``card_runner``, which is in a network namespace;
``fresh_runner`` belongs to one test, which may break it, and
``driver_runner`` is in a driver domain, as is ``driver_card_runner``, in a network namespace.

The order of the names is the same everywhere: pytest groups the tests of a runner by index.
"""

from __future__ import annotations

import pytest

OURS = ("agent", "oneshot")
ALL = (*OURS, "stock")

K = pytest.mark.parametrize("runner", ALL, indirect=True, scope="module")
F = pytest.mark.parametrize("runner", OURS, indirect=True, scope="module")
K_FRESH = pytest.mark.parametrize("fresh_runner", ALL, indirect=True)
F_FRESH = pytest.mark.parametrize("fresh_runner", OURS, indirect=True)
K_CARD = pytest.mark.parametrize("card_runner", ALL, indirect=True, scope="module")
F_CARD = pytest.mark.parametrize("card_runner", OURS, indirect=True, scope="module")
F_DRIVER = pytest.mark.parametrize("driver_runner", OURS, indirect=True)
F_DRIVER_CARD = pytest.mark.parametrize("driver_card_runner", OURS, indirect=True)
