# SPDX-License-Identifier: Apache-2.0
"""Content-addressed files on local disk. All but `ingest` and `threads` blocks: use a thread."""
