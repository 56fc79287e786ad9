# SPDX-License-Identifier: Apache-2.0
"""The peer protocol: hosts give each other the pieces of blobs.

Pure cores, run by services and simulator alike: `metainfo`, `bits`, `wire`, `picker`, `seeding`.
Edges: `pieces` (the file), `connection` (the socket), `node` (the endpoint of one process),
`reader`.
"""
