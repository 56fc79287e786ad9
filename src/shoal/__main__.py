# SPDX-License-Identifier: Apache-2.0
"""``python -m shoal`` is the ``shoal`` command."""

from shoal.cli import main

main()
