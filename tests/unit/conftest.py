"""The unit tests run against this checkout, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_configure() -> None:
    """Refuse to test a copy of the collection that lies elsewhere."""
    try:
        from ansible_collections.shannon.resilience.plugins.module_utils import errors
    except ImportError as exc:
        raise pytest.UsageError(f"the collection can't be imported ({exc}); make env links this checkout") from exc
    found = Path(errors.__file__).resolve()
    if ROOT not in found.parents:
        raise pytest.UsageError(f"the tests would run against {found}, not {ROOT}; make env links this checkout")
