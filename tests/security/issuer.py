"""An issuer of bearer tokens (JWTs) with the keys of the API's own tests, made with the standard library alone."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time

from service import ROOT

KEYS = ROOT / "api/tests/fixtures/jwt"
# What stands before a SHA-256 in a PKCS #1 signature; RFC 8017, 9.2.
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(n):
    return b64(n.to_bytes((n.bit_length() + 7) // 8, "big"))


def integers(der):
    """Every integer of a DER structure, octet strings looked into."""
    while der:
        tag, length, at = der[0], der[1], 2
        if length & 0x80:
            n = length & 0x7F
            length, at = int.from_bytes(der[2:2 + n], "big"), 2 + n
        content, der = der[at:at + length], der[at + length:]
        if tag == 0x02:
            yield int.from_bytes(content, "big")
        elif tag in (0x30, 0x04):
            yield from integers(content)


class Key:
    """A private RSA key of the fixtures."""

    def __init__(self, name):
        lines = (KEYS / f"{name}.pem").read_text().splitlines()
        # The version of the envelope, the version of the key, then its numbers.
        _, _, self.n, self.e, self.d, *_ = integers(base64.b64decode("".join(lines[1:-1])))

    def sign(self, message):
        size = (self.n.bit_length() + 7) // 8
        tail = b"\x00" + SHA256_INFO + hashlib.sha256(message).digest()
        padded = b"\x00\x01" + b"\xff" * (size - 2 - len(tail)) + tail
        return pow(int.from_bytes(padded, "big"), self.d, self.n).to_bytes(size, "big")

    def public(self, kid):
        return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": number(self.n), "e": number(self.e)}


class Issuer:
    """Publishes its key, and counts who asks for it."""

    audience, kid = "luthier", "key-1"

    def __init__(self):
        self.key, self.n_asked = Key("issuer"), 0
        issuer = self

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.n_asked += 1
                body = json.dumps({"keys": [issuer.key.public(issuer.kid)]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            # How a proxy is asked for more than a page.
            do_CONNECT = do_POST = do_PUT = do_GET

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"

    def setting(self):
        """As `auth.issuers` wants it in the environment."""
        return json.dumps([{"issuer": self.url, "audience": self.audience, "jwks_url": f"{self.url}/keys", "algorithms": ["RS256"],
                            "scopes_claim": "scope"}])

    def claims(self, project, **changes):
        claims = {"iss": self.url, "aud": self.audience, "exp": int(time.time()) + 600, "sub": "billing", "project_id": project,
                  "scope": "api.all", **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, claims, key=None, **header):
        header = {name: value for name, value in {"alg": "RS256", "typ": "JWT", "kid": self.kid, **header}.items() if value is not None}
        signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
        match header["alg"]:
            case "none":
                signature = b""
            case "HS256":
                signature = hmac.digest((KEYS / "issuer.pub.pem").read_bytes(), signed.encode(), "sha256")
            case _:
                signature = (key or self.key).sign(signed.encode())
        return f"{signed}.{b64(signature)}"
