# SPDX-License-Identifier: Apache-2.0
"""The origin: keeps the blobs that the ring gives it, seeds them, and answers for all owners."""
