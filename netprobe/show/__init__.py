"""Results for people and programs: terminal tables, JSON. I/O."""
