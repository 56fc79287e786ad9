# SPDX-License-Identifier: Apache-2.0
"""Work that is tried again until it is done: retry policies, and queues that outlive a process."""
