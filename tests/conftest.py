# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: which run side by side, and the report on missing clients."""

from __future__ import annotations

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ("tests.missing_clients",)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")


class KeptTogether(LoadScopeScheduling):  # type: ignore[misc]  # the base has no types
    """Gives a file's tests to one worker, and all of acceptance, which shares its daemons."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "acceptance" if "tests/acceptance/" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> KeptTogether:
    """Start with what has the most tests, which is acceptance."""
    return KeptTogether(config, log)
