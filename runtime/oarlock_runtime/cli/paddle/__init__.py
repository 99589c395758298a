"""The commands of PaddleNLP's server, for scripts that know them: start_server, stop_server and download_model.py."""
