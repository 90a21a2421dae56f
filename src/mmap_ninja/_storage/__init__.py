"""The disk: the only code of the package that touches it.

`disk` holds every call that changes a disk, `commit` the order of those calls, `manifest` and `legacy` what a
folder says about itself (formats 2 and 1), `flatfile` and `index` what is in its files, `writer` the changes
that a map can go through, `snapshot` what a reader sees.
"""
