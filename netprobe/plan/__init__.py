"""Plan files to sessions and send times; what a host allows. Pure."""
