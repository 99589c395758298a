"""PaddleNLP's static-graph directories: read without Paddle, and written with it by `oarlock model export`.

program.py and parameters.py read the files, packing.py the byte layouts of quantized matrices, layout.py knows which
parameter is which tensor, refs.py delivers those, directory.py puts them together. graph.py alone imports Paddle.
"""
