# SPDX-License-Identifier: Apache-2.0
"""Who owns a blob: rendezvous hashing over the members of the ring, and their health. Pure."""
