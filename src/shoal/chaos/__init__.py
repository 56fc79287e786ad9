# SPDX-License-Identifier: Apache-2.0
"""``shoal chaos``: a cluster under load, whose services are broken one after the other."""
