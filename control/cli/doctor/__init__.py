"""`skerry doctor`, and how it and `skerry-edge doctor` tell what they find: `findings`, which the edge imports, too."""
