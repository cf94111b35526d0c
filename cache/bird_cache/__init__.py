"""A feature cache that accounts for every row: write a frozen model's vectors once, read them with a guarantee.

Numpy in, numpy out; never imports torch. The format is specified in cache/README.md of the source tree.
"""
