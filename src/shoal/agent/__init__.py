# SPDX-License-Identifier: Apache-2.0
"""The agent: on every host, a read-only registry whose blobs come from the swarm."""
