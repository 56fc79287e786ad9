# SPDX-License-Identifier: Apache-2.0
"""A swarm of thousands of hosts on a virtual clock, moved by the product's own pure cores."""
