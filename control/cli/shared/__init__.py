"""What the command lines of both programs, `skerry` and `skerry-edge`, have in common."""
