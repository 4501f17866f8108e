#!/usr/bin/env python3
"""The page of testapp: counts its visitors in `db` and says which container answered.

It knows `db` by name only and looks the name up anew for every request, so it finds a `db` that moved.
"""

import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DB_HOST = os.environ["DB_HOST"]
DB_PORT = 6379
DB_TIMEOUT_S = 2
PORT = int(os.environ.get("PORT", "80"))
COUNTER = "visitors"

PAGE = """<!doctype html>
<title>testapp</title>
<h1>testapp</h1>
<p>Visitor number {visitors}, counted in {db}.</p>
<p>Answered by {hostname} at {address}.</p>
"""


def count_visitor():
    """Increments the counter and returns it. Speaks Redis's protocol: one command, one integer back."""
    command = f"*2\r\n$4\r\nINCR\r\n${len(COUNTER)}\r\n{COUNTER}\r\n"
    with socket.create_connection((DB_HOST, DB_PORT), DB_TIMEOUT_S) as db:
        db.sendall(command.encode())
        answer = db.makefile("rb").readline().decode().strip()
    if not answer.startswith(":"):
        raise OSError(f"unexpected answer of {DB_HOST}: {answer!r}")
    return int(answer[1:])


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            self.answer(200, "ok\n")
            return
        if self.path != "/":
            self.answer(404, "There is only / and /health here.\n")
            return
        try:
            visitors = count_visitor()
        except OSError as error:
            self.answer(503, f"{DB_HOST} does not answer: {error}\n")
            return
        # The address on which this container was reached: its overlay address, for a client in the grid.
        address = self.connection.getsockname()[0]
        page = PAGE.format(visitors=visitors, db=DB_HOST, hostname=socket.gethostname(), address=address)
        self.answer(200, page, "text/html; charset=utf-8")

    def answer(self, status, text, content_type="text/plain; charset=utf-8"):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    # As PID 1 of its container it would otherwise ignore the request to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on port {PORT}, db is {DB_HOST}", flush=True)
    ThreadingHTTPServer(("", PORT), Page).serve_forever()


if __name__ == "__main__":
    main()
