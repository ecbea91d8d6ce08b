"""Results kept: the embedded DuckDB file. I/O."""
