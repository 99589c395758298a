"""PaddleNLP's private dialect, without a transport: the same JSON in and the same frames out for HTTP and for gRPC.

`task.py` reads a payload, `checks.py` validates it with PaddleNLP's messages, `prepare.py` turns it into what the
engine is asked, `frames.py` turns what the engine sends into frames, and `conversation.py` ties them together: a
transport makes one `Conversation` a request, iterates over its `answer` and closes it. `failure.py` says how requests
are refused. `docs/paddle.md` compares all of it with PaddleNLP's own server.
"""
