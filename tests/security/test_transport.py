"""What comes in over a connection: routes that are not for clients, heads and bodies that lie, floods (API4, API8)."""

import json
import os
import struct
import time
from pathlib import Path

from attack import MODEL, ROOT, Wire, head, in_both_forms

CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
SMUGGLED = b"GET /v1/files HTTP/1.1\r\nHost: x\r\n\r\n"


@in_both_forms
class Transport:
    def raw(self, request, more=b""):
        """The answer to bytes, and that nothing but it comes: the connection ends after it."""
        with Wire(self.target) as wire:
            wire.send(request + more)
            reply = wire.reply()
            self.assertTrue(wire.ends(), f"the connection goes on after {reply}")
            return reply

    def test_s54_internal_routes_on_the_public_listener(self):
        for path in ("/metrics", "/internal", "/internal/jobs", "/debug", "/debug/pprof/profile", "/door", "/hello", "/claim", "/door/claim",
                     "/v1/generate", "/v1/claim", "/v1/export", "/v1/internal", "/admin", "/.env", "/.git/config", "/server-status"):
            for method in ("GET", "POST"):
                with self.subTest(path=path, method=method):
                    self.refused(self.send(method, path), 404)
                    self.refused(self.send(method, path, key=""), 401 if path.startswith("/v1/") else 404)

    def test_s55_methods_that_are_none_and_overrides(self):
        for method in ("TRACE", "PUT", "PATCH", "PROPFIND", "LUTHIER"):
            with self.subTest(method):
                self.refused(self.send(method, "/v1/models"), 405, code="method_not_supported")
        with Wire(self.target) as wire:
            wire.send(head("CONNECT", "127.0.0.1:22", key=self.a.key))
            self.refused(wire.reply().judge(), (404, 405))
        file = self.a.upload()
        for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
            self.assertEqual(self.send("GET", f"/v1/files/{file}", headers={name: "DELETE"}).status, 200)
            self.assertEqual(self.send("GET", f"/v1/files/{file}?_method=DELETE").status, 200)

    def test_s57_a_content_length_that_lies(self):
        # Less than there is: what is left over is no request.
        with Wire(self.target) as wire:
            wire.send(head("POST", "/v1/chat/completions", key=self.a.key, content_length=10) + CHAT)
            self.refused(wire.reply().judge(), 400)
            left_over = wire.reply()
            self.assertTrue(left_over is None or left_over.status == 400, left_over)
            self.assertTrue(wire.ends())
        # More than there is, and the client says that nothing comes any more.
        with Wire(self.target) as wire:
            wire.send(head("POST", "/v1/chat/completions", key=self.a.key, content_length=len(CHAT) + 1) + CHAT)
            wire.socket.shutdown(1)
            reply = wire.reply()
            self.assertTrue(reply is None or reply.status == 400, reply)
            self.assertTrue(wire.ends())
        for length in ("-1", "+5", "0x10", "5, 6", "99999999999999999999999999", ""):
            reply = self.raw(head("POST", "/v1/chat/completions", key=self.a.key, extra=[f"Content-Length: {length}"]), CHAT)
            self.assertEqual(reply.status, 400, length)

    def test_s102_very_many_headers_and_very_long_ones(self):
        for extra in ([f"X-{i}: y" for i in range(1000)], ["X-Long: " + "y" * 100_000], ["Cookie: " + "a=b; " * 30_000]):
            reply = self.raw(head("GET", "/v1/models", key=self.a.key, extra=extra))
            self.assertEqual(reply.status, 431)
        reply = self.raw(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(reply.status, (414, 431))

    def test_s102_floods_over_http_2(self):
        begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)

        def last_frame(wire):
            last = None
            while (start := wire.file.read(9)) and len(start) == 9:
                last = start[3]
                wire.file.read(int.from_bytes(start[:3], "big"))
            return last

        request = b"\x82\x86" + literal(4, b"/v1/models") + literal(1, b"luthier")
        resets = b"".join(
            frame(1, 5, stream, request) + frame(3, 0, stream, struct.pack(">I", 8)) for stream in range(1, 10_001, 2))
        floods = {
            "rapid reset": resets,
            "continuation": frame(1, 0, 1, request) + frame(9, 0, 1, b"\x00\x01a\x7f\x00" + b"y" * 127) * 20_000,
            "long header": frame(1, 0, 1, request) + frame(9, 0, 1, literal(0, b"y" * 16_000, b"x")) * 40,
            "settings": frame(4, 0, 0) * 50_000,
            "ping": frame(6, 0, 0, b"12345678") * 50_000,
        }
        for name, flood in floods.items():
            with self.subTest(name), Wire(self.target) as wire:
                wire.send(begin + flood)
                begun = time.monotonic()
                self.assertEqual(self.send("GET", "/v1/models").status, 200)
                self.assertLess(time.monotonic() - begun, 2)
                if name in ("rapid reset", "continuation", "long header"):
                    wire.socket.settimeout(20)
                    try:
                        self.assertIn(last_frame(wire), (3, 7, None), "neither GOAWAY nor a reset")
                    except ConnectionResetError:
                        pass
        self.assertLess(self.busy(0.5), 0.25, "the processor does not come to rest")

    def busy(self, seconds):
        """Part of a core that the API's process takes, without anybody asking."""
        pid = self.target.service.processes["up" if self.target.is_embedded else "api"].pid

        def ticks():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        time.sleep(0.2)
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds

    def test_s103_two_lengths(self):
        """RFC 9112, 6.3: chunks stand above a length, and nothing is read from the connection behind them."""
        ended = b"0\r\n\r\n"
        for extra in ([f"Content-Length: {len(ended) + len(SMUGGLED)}", "Transfer-Encoding: chunked"],
                      ["Transfer-Encoding: chunked", "Content-Length: 4"]):
            reply = self.raw(head("POST", "/v1/chat/completions", key=self.a.key, extra=extra), ended + SMUGGLED)
            self.refused(reply.judge(), 400)
        reply = self.raw(head("POST", "/v1/chat/completions", key=self.a.key, extra=["Content-Length: 5", "Content-Length: 6"]), CHAT)
        self.assertEqual(reply.status, 400)

    def test_s103_encodings_that_are_none(self):
        for extra in (["Transfer-Encoding: xchunked"], ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
                      ["Transfer-Encoding: chunked, gzip"], ["Transfer-Encoding : chunked"], ["Transfer-Encoding: \x0bchunked"],
                      ["Transfer-Encoding: identity"], [" Transfer-Encoding: chunked"], ["X: y\r\n Transfer-Encoding: chunked"]):
            with self.subTest(extra):
                reply = self.raw(head("POST", "/v1/chat/completions", key=self.a.key, extra=extra), b"0\r\n\r\n" + SMUGGLED)
                self.assertEqual(reply.status, 400)
        reply = self.raw(head("POST", "/v1/models", key=self.a.key, extra=["Transfer-Encoding: chunked"]).replace(b"1.1", b"1.0", 1), SMUGGLED)
        self.assertEqual(reply.status, 400)

    def test_s103_line_ends_that_are_none(self):
        extra = ["Transfer-Encoding: chunked"]
        for body in (b"3\n{}\r\n0\r\n\r\n", b"g\r\n{}\r\n0\r\n\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"ffffffffffffffff1\r\n{}", b"-1\r\n{}"):
            with self.subTest(body):
                reply = self.raw(head("POST", "/v1/chat/completions", key=self.a.key, extra=extra), body + SMUGGLED)
                self.assertTrue(reply is None or reply.status == 400, reply)
        for request in (b"GET /v1/models HTTP/1.1\r\nHost: x\rX: y\r\n\r\n", b"GET  /v1/models HTTP/1.1\r\n\r\n", b"GET /v1/models\r\n\r\n",
                        b"\x16\x03\x01\x02\x00\x01\x00", b"GET /v1/\x00 HTTP/1.1\r\n\r\n", b"GET /v1/models HTTP/1.1\r\nHost: x\x00\r\n\r\n"):
            with self.subTest(request), Wire(self.target) as wire:
                wire.send(request)
                reply = wire.reply()
                self.assertEqual(reply.status, 400)
                self.assertTrue(wire.ends())
        # A line feed alone ends a line (RFC 9112, 2.2); what stands in front reads this as the one request it is, too.
        with Wire(self.target) as wire:
            wire.send(b"GET /v1/models HTTP/1.1\nHost: x\nConnection: close\n\n")
            self.refused(wire.reply().judge(), 401)
            self.assertTrue(wire.ends())

    def test_s107_another_origin(self):
        """Any origin may call with a key that it holds. There is no cookie, so no origin is named and none may send credentials."""
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
            reply = self.send("GET", "/v1/models", headers=headers)
            self.assertEqual(reply.headers["access-control-allow-origin"], "*")
            self.assertIsNone(reply.headers["access-control-allow-credentials"])
            self.assertIsNone(reply.headers["set-cookie"])
            self.assertIsNone(self.send("GET", "/healthz", key="", headers=headers).headers["access-control-allow-origin"])

    def test_s108_headers_of_every_answer(self):
        for path in ("/v1/models", "/v1/no-such", "/no-such", "/healthz", f"/v1/files/{self.a.file}/content"):
            reply = self.send("GET", path)
            self.assertEqual(reply.headers["x-content-type-options"], "nosniff")
            for name in ("server", "x-powered-by", "strict-transport-security", "set-cookie"):
                self.assertIsNone(reply.headers[name], f"{path}: {name}")

    def key_for(self, path, methods):
        """The one that the routes of this path ask for; `None`: the project's."""
        if not path.startswith("/v1/"):
            return ""
        is_for_administrators = any({"AdminApiKey": []} in operation.get("security", []) for operation in methods.values())
        return self.target.admin_key if is_for_administrators else None

    def test_s111_what_is_served_is_what_is_documented(self):
        document = json.loads((ROOT / "openapi/openapi.json").read_text())
        for path, methods in document["paths"].items():
            url = path.replace("{", "").replace("}", "")
            for method in ("get", "post", "put", "patch", "delete"):
                reply = self.send(method.upper(), url, key=self.key_for(path, methods))
                if method in methods:
                    self.assertNotEqual(reply.status, 405, f"{method} {path}")
                    self.assertNotIn("Invalid URL", reply.body.decode())
                else:
                    self.refused(reply, 405)
        for path in ("/openapi.json", "/docs", "/swagger", "/spec", "/v1/openapi.json", "/v1", "/v1/", "/"):
            self.refused(self.send("GET", path), 404)


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(index, value, name=None):
    """A header that is not indexed; RFC 7541, 6.2.2. Values of up to 127 bytes, or longer ones with a name."""
    length = bytes([len(value)]) if len(value) < 127 else b"\x7f" + varint(len(value) - 127)
    return bytes([index]) + (bytes([len(name)]) + name if name else b"") + length + value


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n % 128 + 128])
        n //= 128
    return out + bytes([n])
