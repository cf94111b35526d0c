"""How a student is measured: scores, gaps, their intervals, paired differences."""
