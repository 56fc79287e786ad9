# SPDX-License-Identifier: Apache-2.0
"""What a registry speaks of: digests, names, manifests, and the errors of its API. No I/O."""
