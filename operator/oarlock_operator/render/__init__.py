"""Pure functions from a ModelDeployment to the objects it consists of, as JSON-ready data for server-side apply."""
