# SPDX-License-Identifier: Apache-2.0
"""The build-index: knows what belongs to which repository, and refuses what is not whole.

Tags, manifests and links of blobs are versioned `records`, replicated between build-indexes; the
newest wins. Pure: `clock`, `records`, `dependencies`, `tag_types`, `garbage`. The disk: `schema`,
`view` (reads), `writes` (what each write demands and changes), `database`, and `store`, its
asynchronous edge. Other hosts: `resolver` with `existence` and `attempts` (the origins),
`neighbours`, and `members`, what all build-indexes know together. Backends and upstreams: `storage`
and `upstreams` look up what no record says (`elsewhere` decides which; `revalidation`, pure, says
whether an upstream's tag still holds), `adoption` reads what is adopted, `listing` merges lists,
`writeback` writes. `publishing` is the way of every write. `service` puts them together.
"""
