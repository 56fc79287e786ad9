# SPDX-License-Identifier: Apache-2.0
"""The build-index: maps tags to digests, and refuses a tag whose dependencies are missing.

Pure: `clock`, `records`, `dependencies`. Edges: `tags` (the disk), `resolver` (the origins),
`neighbours`.
"""
