# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from shoal.cluster.sample import layer_sizes, make_image, make_layer
from shoal.model.digest import Digest
from shoal.model.manifest import parse_manifest


@pytest.mark.parametrize("size", [1, 511, 512, 100_000])
def test_a_layer_is_a_tar_file_with_the_digest_and_size_that_it_says(
    tmp_path: Path, size: int
) -> None:
    layer = make_layer(tmp_path / "layer", size)
    content = layer.path.read_bytes()
    assert layer.size == len(content)
    assert layer.digest == Digest("sha256", hashlib.sha256(content).hexdigest())
    with tarfile.open(layer.path) as archive:
        assert [entry.size for entry in archive] == [size]


def test_an_image_names_its_layers_in_manifest_and_config(tmp_path: Path) -> None:
    layers = tuple(make_layer(tmp_path / str(i), 1000) for i in range(3))
    image = make_image(layers)
    manifest = parse_manifest(image.manifest)
    assert [entry.digest for entry in manifest.layers] == [layer.digest for layer in layers]
    assert manifest.config is not None
    assert manifest.config.digest == Digest.of(image.config)
    diff_ids = json.loads(image.config)["rootfs"]["diff_ids"]
    assert diff_ids == [str(layer.digest) for layer in layers]
    assert image.size == sum(layer.size for layer in layers)


@pytest.mark.parametrize("total,layers", [(10, 3), (256 << 20, 3), (1, 1)])
def test_layers_add_up_to_the_size_asked_for(total: int, layers: int) -> None:
    sizes = layer_sizes(total, layers)
    assert len(sizes) == layers
    assert sum(sizes) == total
