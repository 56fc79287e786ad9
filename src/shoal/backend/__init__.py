# SPDX-License-Identifier: Apache-2.0
"""Remote storage behind one interface: object stores, other registries, HTTP, WebHDFS, SQL."""
