"""Between server processes and the engine process: the messages, and the two ends of the socket that carries them."""
