# SPDX-License-Identifier: Apache-2.0
"""The peer protocol: hosts give each other the pieces of blobs.

Pure cores, some of them run by the simulator, too: `metainfo`, `bits`, `wire`, `picker`, `readers`,
`seeding`. Edges: `pieces` (the file), `connection` (the socket), `node` (the endpoint of one
process).
"""
