"""The protocol's own file and what is made from it: tools/protocol.py writes inference.binpb and messages.pyi."""
