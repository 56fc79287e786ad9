# SPDX-License-Identifier: Apache-2.0
"""Strict configuration: YAML and environment, units on quantities, an origin for each value."""
