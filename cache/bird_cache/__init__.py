"""A feature cache that accounts for every row: write a frozen model's vectors once, read them checked.

Numpy in, numpy out; never imports torch. `open_cache(path)` is where a reader starts. The format is specified in
cache/README.md of the source tree.
"""

from bird_cache.store import FeatureStore, open_cache

__all__ = ["FeatureStore", "open_cache"]
