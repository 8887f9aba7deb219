"""What the front and its children say to each other, and how children are started. Start with frames."""
