# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher lowers Patroni's least ttl, that number alone, and leaves an unknown Patroni as it is."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "roles" / "postgres" / "files" / "shannon_patroni.py"


@pytest.fixture
def launcher() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("shannon_patroni", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Config:
    """As much of Patroni's Config as the launcher knows."""

    def __get_and_maybe_adjust_int_value(self, config: dict[str, int], param: str, min_value: int) -> int:
        config[param] = max(config[param], min_value)
        return config[param]

    def adjust(self, config: dict[str, int]) -> dict[str, int]:
        self.__get_and_maybe_adjust_int_value(config, "ttl", 20)
        self.__get_and_maybe_adjust_int_value(config, "retry_timeout", 3)
        return config


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 20), ("", 20), ("7", 7), ("1", 7), ("12", 12), ("60", 20), ("soon", 20)]
)
def test_the_bound_is_between_ours_and_patronis(launcher: types.ModuleType, value: str | None, expected: int) -> None:
    assert launcher.minimum_ttl(value) == expected


def test_only_the_ttl_may_be_lower(launcher: types.ModuleType) -> None:
    class Fresh(Config):
        pass

    assert launcher.lower_minimum(Fresh, 7)
    adjusted = Fresh._Config__get_and_maybe_adjust_int_value  # type: ignore[attr-defined]
    config = {"ttl": 8, "retry_timeout": 1}
    assert adjusted(Fresh(), config, "ttl", 20) == 8
    assert adjusted(Fresh(), config, "retry_timeout", 3) == 3
    assert Config().adjust({"ttl": 8, "retry_timeout": 3})["ttl"] == 20


def test_another_patroni_is_left_alone(launcher: types.ModuleType) -> None:
    assert not launcher.lower_minimum(object, 7)
