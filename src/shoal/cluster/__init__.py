# SPDX-License-Identifier: Apache-2.0
"""A whole cluster on one machine: who listens where, and one process per service, supervised."""
