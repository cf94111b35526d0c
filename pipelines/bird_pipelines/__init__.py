"""The two phases and what surrounds them: data set -> precompute -> cache -> distill -> run -> evaluate -> report."""
