"""What a process may still do once it is fenced. Start with fence."""
