"""The verbs for when data was lost or is old: `verify` compares the bucket with the metadata, `recover`
brings restored metadata back to what nodes run."""
