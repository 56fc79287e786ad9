# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of the OCI distribution-spec, of its main branch, with everything on.

It is a Go program, built from the pinned commit with a Go on PATH.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest

from tests.cluster import RunningCluster
from tests.missing_clients import find_command, lacking

SUITE: Final = (
    "github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111"
)
BUILD_WITHIN: Final = 240.0
RUN_WITHIN: Final = 120.0

EVERYTHING: Final = {
    "OCI_VERSION": "dev",
    "OCI_API_BLOBS_DIGEST_HEADER": "true",
    "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
    "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
    "OCI_API_MANIFESTS_TAG_PARAM": "true",
}
"""What the suite leaves off by itself, but for images without their layers: Shoal refuses those,
unless the config allows them."""


INCOMPLETE: Final = {"pattern": "^conformance/", "type": "default"}
"""Repositories whose images need not be complete."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = find_command("go")
    if go is None:
        lacking("Go 1.24 or newer on PATH, for the conformance suite")
    folder = tmp_path_factory.mktemp("suite")
    environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-modcacherw"}
    try:
        subprocess.run(
            [go, "install", SUITE],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_WITHIN,
        )
    except subprocess.CalledProcessError as error:
        lacking(f"what the conformance suite is built of: {error.stderr[-300:].strip()}")
    return folder / "conformance"


@pytest.mark.parametrize("sparse", [False, True], ids=["complete images", "sparse images"])
def test_the_conformance_suite_finds_no_fault(suite: Path, sparse: bool, tmp_path: Path) -> None:
    config = {"build-index": {"tag_types": [INCOMPLETE]}} if sparse else None
    with RunningCluster.start(tmp_path / "cluster", agents=0, config=config) as cluster:
        outcome = subprocess.run(
            [suite],
            env={
                **os.environ,
                **EVERYTHING,
                "OCI_DATA_SPARSE": str(sparse).lower(),
                "OCI_REGISTRY": urlsplit(cluster.proxy).netloc,
                "OCI_TLS": "disabled",
                "OCI_RESULTS_DIR": str(tmp_path / "results"),
            },
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_WITHIN,
        )
    results = ET.parse(tmp_path / "results" / "junit.xml").getroot()
    cases = list(results.iter("testcase"))
    faults = [
        f"{case.get('classname')} {case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]

    assert not faults, "\n".join([*faults, outcome.stdout[-3000:]])
    assert outcome.returncode == 0, outcome.stdout[-3000:]
    assert not [name for name in skipped if sparse or "sparse" not in str(name).lower()]
    assert len(cases) > 100
