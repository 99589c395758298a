"""Oarlock's runtime: checkpoints, the engine, the server and its command line."""
