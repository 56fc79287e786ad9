# SPDX-License-Identifier: Apache-2.0
"""The build-index: maps tags to digests, and refuses a tag whose dependencies are missing.

Pure: `clock`, `records`, `dependencies`, `tag_types`. Edges: `tags` (the disk), `resolver` with
`existence` and `attempts` (the origins), `neighbours`.
"""
