"""What lies beyond the program under attack: names and public addresses (internet.c says how), and the receivers behind them."""

import atexit
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

FIXTURES = Path(__file__).with_name("fixtures")
HTTPS = 443


class Internet:
    """Names and routes, the same for every program that was started with `env`; a change holds from the next call on."""

    def __init__(self):
        folder = Path(tempfile.mkdtemp(prefix="luthier-internet-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        library, self.map = folder / "internet.so", folder / "map"
        source = Path(__file__).with_name("internet.c")
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.names, self.routes = {}, {}
        self.env = {"LD_PRELOAD": str(library), "TEST_INTERNET": str(self.map), "SSL_CERT_FILE": str(FIXTURES / "hook.pem")}
        self.write()

    def name(self, host, *addresses):
        self.names[host] = addresses
        self.write()

    def route(self, address, receiver):
        """Who calls the address by HTTPS arrives at the receiver."""
        self.routes[address] = receiver.port
        self.write()

    def write(self):
        lines = [f"name {host} {' '.join(addresses)}" for host, addresses in self.names.items()]
        lines += [f"route {address} {HTTPS} {port}" for address, port in self.routes.items()]
        new = self.map.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.map)


class Request:
    """What came to a receiver."""

    def __init__(self, line, headers, body):
        self.path, self.headers, self.body = line.split()[1].decode("latin-1"), {name.lower(): value for name, value in headers.items()}, body


def answer(status, *headers):
    return "\r\n".join([f"HTTP/1.1 {status} Answer", "content-length: 0", *headers, "", ""]).encode()


class Receiver:
    """An HTTPS server that keeps what it is told. `answers`, one a request and then 200: bytes, or what is called with the connection."""

    def __init__(self, answers=(), certificate="hook"):
        self.answers, self.received, self.n_calls = list(answers), [], 0
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(FIXTURES / f"{certificate}.pem")
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return  # it was closed
            self.n_calls += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            with connection, self.context.wrap_socket(connection, server_side=True) if self.context else connection as wire:
                file = wire.makefile("rb")
                line, headers = file.readline(), http.client.parse_headers(file)
                body = file.read(int(headers.get("content-length", 0)))
                given = self.answers.pop(0) if self.answers else answer(200)
                self.received.append(Request(line, headers, body))
                given(wire) if callable(given) else wire.sendall(given)
        except (OSError, IndexError, http.client.HTTPException):
            pass  # who called has left, or spoke otherwise

    def close(self):
        self.socket.close()


INTERNET = Internet()


class Endless:
    """An answer that goes on for as long as it is read: `head`, then `piece` again and again."""

    def __init__(self, head, piece, pause_s=0):
        self.head, self.piece, self.pause_s, self.n_bytes = head, piece, pause_s, 0

    def __call__(self, wire):
        wire.sendall(self.head)
        while True:
            wire.sendall(self.piece)
            self.n_bytes += len(self.piece)
            time.sleep(self.pause_s)


OK, ZEROS = b"HTTP/1.1 200 OK\r\n", b"\0" * (1 << 16)


class Hopeless:
    """Receivers that never end or are not who they should be, each told something by a test of its own: (what, status, answer of the service, how
    long it took, how much was sent to it)."""

    def __init__(self, tenant):
        self.outcomes, self.threads, self.receivers = [], [], []
        cases = [
            ("an endless body", 200, Endless(OK + b"\r\n", ZEROS), "hook"),
            ("a bomb", 200, Endless(OK + b"content-encoding: gzip\r\ncontent-length: 100000000000\r\n\r\n", ZEROS), "hook"),
            ("an endless head", 400, Endless(OK + b"x-endless: ", b"y" * 1000), "hook"),
            ("headers without end", 400, Endless(OK, b"x: y\r\n" * 100), "hook"),
            ("a byte a second", 400, Endless(b"H", b"T", 1), "hook"),
            ("nothing", 400, Endless(b"", b"", 1), "hook"),
            ("another's certificate", 400, Endless(OK + b"\r\n", ZEROS), "stranger"),
            ("no TLS", 400, Endless(OK + b"\r\n", ZEROS), None),
            ("a certificate for another name", 400, Endless(OK + b"\r\n", ZEROS), "hook"),
        ]
        for i, (what, status, given, certificate) in enumerate(cases):
            receiver, address = Receiver([given], certificate), f"93.184.216.{i + 1}"
            domain = "example" if "another name" in what else "hooks.example"
            host = f"hopeless-{i}-{receiver.port}.{domain}"
            INTERNET.route(address, receiver)
            INTERNET.name(host, address)
            self.receivers.append(receiver)
            thread = threading.Thread(target=self.ask, args=(tenant, host, what, status, given), daemon=True)
            thread.start()
            self.threads.append(thread)

    def ask(self, tenant, host, what, status, given):
        def send(*asked):
            return tenant.target.send(*asked, key=tenant.key)

        endpoint = {"name": "hook", "url": f"https://{host}/hook", "event_types": ["fine_tuning.job.succeeded"]}
        try:
            path = f"/v1/webhook_endpoints/{send('POST', '/v1/webhook_endpoints', endpoint).json()['id']}"
            begun = time.monotonic()
            reply = send("POST", f"{path}/test", {"event_type": "fine_tuning.job.succeeded"})
            self.outcomes.append((what, status, reply, time.monotonic() - begun, given.n_bytes))
            send("DELETE", path)
        except OSError:
            pass  # the service was stopped before anybody asked what became of it

    def ended(self):
        for thread in self.threads:
            thread.join()
        for receiver in self.receivers:
            receiver.close()
        return self.outcomes
