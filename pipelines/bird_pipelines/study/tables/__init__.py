"""The paper's tables: what they train, the steps that they share, and ours beside the printed numbers."""
