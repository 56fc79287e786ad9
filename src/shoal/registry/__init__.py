# SPDX-License-Identifier: Apache-2.0
"""The OCI distribution API: one file per resource, over the ports in `shoal.registry.ports`.

Nothing here knows where blobs and tags are kept: the proxy and the agent each bring their own.
"""
