"""Many runs for one question: the tables of the paper, comparisons, searches."""
