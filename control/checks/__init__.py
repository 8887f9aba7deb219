"""The edge's own checks of what is uploaded, run by control (`edge_check`), and whose turn it is (`fair_turns`)."""
