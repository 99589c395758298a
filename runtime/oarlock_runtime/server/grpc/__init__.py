"""KServe's inference protocol over gRPC: grpc.aio beside the web server, in each server process."""
