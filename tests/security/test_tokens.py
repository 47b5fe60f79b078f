"""Bearer tokens of an issuer that the operator trusts (API2)."""

import base64
import json
import random

from attack import in_both_forms
from issuer import Issuer, Key, b64


class Unsigned:
    """Signs nothing: who does not know the key cannot tell."""

    def sign(self, _message):
        return bytes(256)


@in_both_forms
class Tokens:
    def setUp(self):
        self.issuer = self.target.issuer
        self.claims = self.issuer.claims(self.a.project)
        # Before anything else: what is refused below is refused for its own reason.
        self.assertEqual(self.ask(self.issuer.token(self.claims)).status, 200)

    def ask(self, token, method="GET", path="/v1/files"):
        return self.send(method, path, key=token)

    def closed(self, token, statuses=(401,)):
        reply = self.refused(self.ask(token), statuses)
        self.assertNotIn(token, reply.body.decode())

    def test_s19_a_token_that_is_not_signed(self):
        token = self.issuer.token(self.claims, alg="none")
        self.closed(token)
        self.closed(token.rstrip("."))
        for spelled in ("None", "NONE", "nOnE", ""):
            head = b64(json.dumps({"alg": spelled, "kid": self.issuer.kid}).encode())
            self.closed(f"{head}.{token.split('.')[1]}.")
        good = self.issuer.token(self.claims)
        self.closed(good.rsplit(".", 1)[0] + ".")
        self.closed(good[:-4] + "AAAA")

    def test_s20_the_public_key_as_a_secret(self):
        self.closed(self.issuer.token(self.claims, alg="HS256"))

    def test_s21_times_as_text(self):
        for changes in ({"exp": "9999999999"}, {"nbf": "0"}, {"exp": [9999999999]}, {"exp": True}, {"exp": {}}, {"nbf": "9999999999"}):
            self.closed(self.issuer.token(self.issuer.claims(self.a.project, **changes)))
        for changes in ({"exp": 1}, {"exp": -1}, {"exp": 0}, {"nbf": 9999999999}):
            self.closed(self.issuer.token(self.issuer.claims(self.a.project, **changes)))

    def test_s22_claims_that_are_missing_or_nearly_right(self):
        iss, aud = self.claims["iss"], self.claims["aud"]
        for changes in ({"exp": None}, {"aud": None}, {"iss": None}, {"aud": "other"}, {"aud": aud.upper()}, {"aud": aud + " "}, {"aud": []},
                        {"iss": iss + "/"}, {"iss": iss.upper()}, {"iss": [iss]}, {"iss": "https://evil.example"}, {"project_id": None},
                        {"project_id": [self.a.project]}, {"project_id": "default"}, {"project_id": "proj_none"}):
            with self.subTest(changes):
                self.closed(self.issuer.token(self.issuer.claims(self.a.project, **changes)))

    def test_s16_a_token_opens_the_project_that_it_names_and_no_other(self):
        token = self.issuer.token(self.issuer.claims(self.b.project))
        self.refused(self.ask(token, path=f"/v1/files/{self.a.file}"), 404)
        self.assertEqual(self.ask(token, path=f"/v1/files/{self.b.file}").status, 200)
        self.refused(self.send("GET", "/v1/files", key=token, headers={"OpenAI-Project": self.a.project}), 401)
        for scope, status in (("", 403), ("openid profile", 403), ("api.files.read", 404), ("api.files.write", 404)):
            token = self.issuer.token(self.issuer.claims(self.a.project, scope=scope))
            self.refused(self.ask(token, path="/v1/files/file-none"), status)
        token = self.issuer.token(self.issuer.claims(self.a.project, scope="api.files.read"))
        self.refused(self.ask(token, "DELETE", f"/v1/files/{self.a.file}"), 403)

    def test_s23_keys_that_the_token_brings_along(self):
        evil = Issuer()
        stranger = Key("stranger")
        public = stranger.public(self.issuer.kid)
        for header in ({"jku": f"{evil.url}/keys"}, {"x5u": f"{evil.url}/keys"}, {"jwk": public}, {"kid": f"{evil.url}/keys"},
                       {"jku": f"{evil.url}/keys", "jwk": public, "crit": ["jku"]}):
            self.closed(self.issuer.token(self.claims, key=stranger, **header))
        self.assertEqual(evil.n_asked, 0, "a token chose where its keys come from")

    def test_s24_names_of_keys_with_tricks(self):
        for kid in ("../../etc/passwd", "' or 1=1 --", "/dev/null", "", None, 1, ["key-1"], "x" * 30_000, "key-1\x00", "KEY-1"):
            with self.subTest(str(kid)[:20]):
                self.closed(self.issuer.token(self.claims, kid=kid))
        self.assertEqual(self.target.send_unjudged("GET", "/v1/files", key=self.issuer.token(self.claims, kid="x" * 1_000_000)).status, 431)

    def test_s25_unknown_keys_are_asked_for_once_a_minute(self):
        before = self.issuer.n_asked
        for _ in range(400):
            self.closed(self.issuer.token(self.claims, key=Unsigned(), kid=f"key-{random.random()}"))
        self.assertLessEqual(self.issuer.n_asked - before, 1)

    def test_s18_text_that_is_nearly_a_token(self):
        payload = base64.urlsafe_b64encode(b"{" * 1000).decode()
        for token in ("eyJ..", "eyJ.eyJ.eyJ", f"eyJhbGciOiJSUzI1NiJ9.{payload}.x", "eyJ" + "." * 5000, "eyJhbGciOiJSUzI1NiJ9." + "A" * 50_000 + ".x"):
            self.closed(token)
