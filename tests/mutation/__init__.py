"""Mutation score of `netprobe verify`: seeded single-rule mutants in each way of enforcement, and how many it finds."""
