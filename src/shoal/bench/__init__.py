# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as a product: each starts its own cluster and ends with a line of JSON."""
