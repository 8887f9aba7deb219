"""``python -m bench.parts.loader SECONDS``: send one request over and over, from a process of its own; print how often.

The request is on stdin, as JSON: port, ca, method, path, token, body. A refusal is an answer too, but no fault is.
"""

import http.client
import json
import ssl
import sys
import time


def main() -> None:
    asked = json.load(sys.stdin)
    body = asked["body"].encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {asked['token']}"}
    context = ssl.create_default_context(cafile=asked["ca"])
    until = time.perf_counter() + float(sys.argv[1])
    count = 0
    connection = http.client.HTTPSConnection("127.0.0.1", asked["port"], context=context)
    while time.perf_counter() < until:
        try:
            connection.request(asked["method"], asked["path"], body=body or None, headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status < 500, answer.status
        except (OSError, http.client.HTTPException):
            connection.close()  # it was refused before all of it had been sent
        count += 1
    print(count)


if __name__ == "__main__":
    main()
