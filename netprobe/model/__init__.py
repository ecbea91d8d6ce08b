"""Values that everyone shares: points, paths, probes, hop records, results. Pure; imports only errors."""
