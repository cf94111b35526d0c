"""Many runs for one question: the paper's tables, comparisons, searches."""
