"""The protocol's own file and what is made from it: `make protocol` writes inference.binpb and messages.pyi."""
