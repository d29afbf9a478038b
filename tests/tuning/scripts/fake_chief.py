"""`fake_chief.py PORT hang|answer`: answers every call with an empty message, or never.

Says "ready", and "called" at each call.
"""

import sys
import time
from concurrent import futures

import grpc


class Any(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)


def answer(request, context):
    print("called", flush=True)
    if sys.argv[2] == "hang":
        time.sleep(1000)
    return b""


server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Any()])
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
print("ready", flush=True)
time.sleep(1000)
