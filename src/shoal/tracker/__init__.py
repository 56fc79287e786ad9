# SPDX-License-Identifier: Apache-2.0
"""The tracker: knows who has what and hands out peers. It keeps soft state only.

Pure: `swarms`, `handout`, `addresses`. Edges: `metainfos` (asks the origins), `service`, `api`.
"""
