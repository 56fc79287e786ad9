# SPDX-License-Identifier: Apache-2.0
"""The cluster that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import RunningCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A proxy, three origins, a tracker, a build-index and two agents.

    A test that kills or reconfigures services starts its own with `RunningCluster.start`.
    """
    with RunningCluster.start(tmp_path_factory.mktemp("cluster")) as running:
        yield running
