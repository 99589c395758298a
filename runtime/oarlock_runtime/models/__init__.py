"""Everything that is read from a model: where it comes from, its shapes, its weights and its tokenizer.

The lowest Python layer. The server process uses the tokenizer, the engine process the checkpoint, and the command line
the sources, `inspect` and `random`. Nothing that lies in a model directory is ever executed.
"""
