"""One step of BIRD: the gate or the offsets, the feedback by one JVP, its guard, students side by side."""
