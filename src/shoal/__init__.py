# SPDX-License-Identifier: Apache-2.0
"""Shoal: a peer-to-peer container registry."""

__version__ = "0.1.0"
