# SPDX-License-Identifier: Apache-2.0
"""An origin knows its own name in the ring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shoal.origin.config import OriginConfig


def config(**more: Any) -> OriginConfig:
    base = {"data_dir": Path("data"), "origins": {"hosts": ["127.0.0.1:5002", "b:5002"]}}
    return OriginConfig.model_validate(base | more)


def test_it_is_called_as_it_listens() -> None:
    assert config().member == "127.0.0.1:5002"


def test_it_may_be_called_otherwise() -> None:
    assert config(listen="0.0.0.0:5002", name="b:5002").member == "b:5002"


def test_a_name_that_the_ring_does_not_list_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"0\.0\.0\.0:5002, which origins\.hosts does not"):
        config(listen="0.0.0.0:5002")
