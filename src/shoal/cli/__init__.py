# SPDX-License-Identifier: Apache-2.0
"""The ``shoal`` command: one module per group of commands."""

from shoal.cli.app import main

__all__ = ["main"]
