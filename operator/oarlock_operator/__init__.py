"""Oarlock's operator: turns ModelDeployments into groups of pods that serve a model.

Layers, lowest first: api (typed spec and status) < render (spec to objects) < decide (observed to actions) < controller
(API-server glue) < local (the same decisions as processes on this machine) < cli.
"""
