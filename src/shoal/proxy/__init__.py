# SPDX-License-Identifier: Apache-2.0
"""The proxy: takes pushes, hands blobs to the origins and tags to the build-index."""
