"""Phase one: the frozen teacher runs once over a data set, and its features become a cache."""
