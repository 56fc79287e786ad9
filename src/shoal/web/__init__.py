# SPDX-License-Identifier: Apache-2.0
"""What every server and client shares: deadlines, failures, bodies, logs, metrics, processes."""
