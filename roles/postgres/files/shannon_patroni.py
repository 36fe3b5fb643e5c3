# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start Patroni with a lower bound of our own for the leader's lease.

Patroni raises any C(ttl) below 20 to 20 (patroni/config.py, C(_validate_and_adjust_timeouts)) and has no setting for
that bound. A lost host is then replaced after 20 to 25 s: the lease must run out, and when the lost host led etcd as
well, etcd's new leader starts every lease afresh. On a LAN, with etcd on the same hosts, a shorter lease is sound as
long as Patroni's own rule holds, which stays in force here: C(loop_wait + 2 * retry_timeout <= ttl). It lets a primary
that cannot reach etcd demote itself before anyone else can take its lease.

The bound comes from C(SHANNON_PATRONI_MINIMUM_TTL); without it, and for a value of 20 or more, this is plain Patroni.
Nothing but that one number changes. A Patroni that computes it in another way is started as it is, with a warning:
a database with a slower failover is better than none.
"""

from __future__ import annotations

import functools
import os
import sys

VARIABLE = "SHANNON_PATRONI_MINIMUM_TTL"
#: Patroni's own bound, and the least that leaves room for its least loop_wait (1) and retry_timeout (3).
PATRONI_MINIMUM = 20
LEAST = 7
#: C(Config.__get_and_maybe_adjust_int_value(config, param, min_value)), as Python names it from outside of the class.
METHOD = "_Config__get_and_maybe_adjust_int_value"


def minimum_ttl(value: str | None) -> int:
    """The bound that the variable asks for, between LEAST and Patroni's own."""
    if not value:
        return PATRONI_MINIMUM
    try:
        wanted = int(value)
    except ValueError:
        print(f"shannon-patroni: {VARIABLE} is {value!r}, not a number; it stays {PATRONI_MINIMUM}", file=sys.stderr)
        return PATRONI_MINIMUM
    return min(PATRONI_MINIMUM, max(LEAST, wanted))


def lower_minimum(config_class: type, minimum: int) -> bool:
    """Make the class accept a C(ttl) from the minimum on; tells whether it could."""
    original = getattr(config_class, METHOD, None)
    if original is None:
        return False

    @functools.wraps(original)
    def bounded(self: object, config: dict, param: str, min_value: int) -> int:
        return original(self, config, param, min(min_value, minimum) if param == "ttl" else min_value)

    setattr(config_class, METHOD, bounded)
    return True


def main() -> None:
    """Patroni's own entry point, after the bound is set."""
    from patroni.__main__ import main as patroni_main
    from patroni.config import Config

    minimum = minimum_ttl(os.environ.get(VARIABLE))
    if minimum < PATRONI_MINIMUM and not lower_minimum(Config, minimum):
        print(f"shannon-patroni: this Patroni has no {METHOD}; its own least ttl is in force", file=sys.stderr)
    patroni_main()


if __name__ == "__main__":
    main()
