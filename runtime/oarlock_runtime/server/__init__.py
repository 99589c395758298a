"""The processes around the engine: the supervisor, the servers that speak HTTP, their health and their metrics."""
