"""Serves buckets until its input ends. Prints its address, then the key file of a service account, each on a line."""

import json
import sys

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
account = {
    "type": "service_account",
    "client_email": "test@example.org",
    "private_key_id": "1",
    "private_key": key.decode(),
    "token_uri": "http://127.0.0.1:1/never-asked",
}
print(json.dumps(account), flush=True)
sys.stdin.read()
