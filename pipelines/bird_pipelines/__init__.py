"""The two phases and what surrounds them. Data flows one way: data set -> precompute -> cache -> distill -> run -> report."""
