"""Bodies and parameters beyond what anybody means (API3, API4)."""

import gzip
import json
import time

from attack import MODEL, MULTIPART, Wire, form, head, in_both_forms, quoted
from worlds import World, all_operations, kind_in_path

METACHARACTERS = ["'; drop table files; --", "\" or 1=1 --", "{\"$gt\": \"\"}", "*)(uid=*))(|(uid=*", "$(id) `id` ; id | id & id", "%s%n%x", "\\",
                  "../../etc/passwd", "<script>alert(1)</script>", "{{7*7}}{% raw %}", "\u202egnp.exe", "a\u0300\U0001f468\u200d\U0001f469",
                  "' union select hmac from api_keys --", "%00", "\r\nX-Evil: 1", "a\tb", "null", "-1e999"]


@in_both_forms
class Bodies:
    def test_s49_a_job_with_fields_that_are_not_the_clients(self):
        for field, value in (("status", "succeeded"), ("id", "ftjob-mine"), ("project_id", self.b.project), ("trained_tokens", 1),
                             ("fine_tuned_model", "ft:x"), ("organization_id", "org-x"), ("created_at", 1), ("x_status", "paused")):
            body = {"model": MODEL, "training_file": self.a.file, field: value}
            self.refused(self.send("POST", "/v1/fine_tuning/jobs", body), code="unknown_parameter", param=field)
        body = {"model": MODEL, "training_file": self.a.file,
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "epoch": 3}}}}
        self.refused(self.send("POST", "/v1/fine_tuning/jobs", body), code="unknown_parameter",
                     param="method.supervised.hyperparameters.epoch")

    def test_s52_metadata_beyond_its_limits(self):
        for metadata in ({str(i): "x" for i in range(17)}, {"x" * 65: "y"}, {"x": "y" * 513}, {"x": {"y": "z"}}, {"x": 1}, ["x"], "x"):
            body = {"model": MODEL, "training_file": self.a.file, "metadata": metadata}
            reply = self.refused(self.send("POST", "/v1/fine_tuning/jobs", body))
            self.assertTrue(reply.error["param"].startswith("metadata"), reply)

    def test_s58_compressed_bodies(self):
        bomb = gzip.compress(b" " * (10 << 20))
        before = self.target.resident()
        for encoding in ("gzip", "deflate", "br", "zstd", "gzip, identity", "x"):
            for path, content_type in (("chat/completions", "application/json"), ("files", MULTIPART), ("x/adapters", MULTIPART)):
                headers = {"Content-Encoding": encoding, "Content-Type": content_type}
                self.refused(self.send("POST", f"/v1/{path}", bomb, headers=headers), 415)
        self.assert_small(before, 32)

    def assert_small(self, before, mib):
        """No process has grown by more than so much."""
        after = self.target.resident()
        grown = {pid: (after[pid] - bytes) / (1 << 20) for pid, bytes in before.items() if pid in after}
        self.assertLess(max(grown.values()), mib, grown)

    def test_s59_forms_that_are_none(self):
        whole = form([("purpose", None, "fine-tune"), ("file", "a.jsonl", b"{}")])
        nested = b"--YY\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--YY--\r\n"
        many = b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nx\r\n" * 100_000 + b"--XX--\r\n"
        before, kept = self.target.resident(), self.target.objects(self.a.project)
        for name, content_type, body in (
                ("100,000 parts", MULTIPART, many),
                ("a boundary of 10 kB", "multipart/form-data; boundary=" + "x" * 10_000, whole),
                ("no boundary", "multipart/form-data", whole),
                ("another boundary", "multipart/form-data; boundary=YY", whole),
                ("no last boundary", MULTIPART, whole.removesuffix(b"--XX--\r\n")),
                ("nothing", MULTIPART, b""),
                ("a form in a form", MULTIPART, form([("purpose", None, "fine-tune"), ("attachments", None, nested)])),
                ("headers without end", MULTIPART, b"--XX\r\n" + b"X: y\r\n" * 10_000),
                ("no name", MULTIPART, b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--\r\n"),
                ("json", "application/json", b"{}")):
            with self.subTest(name):
                self.refused(self.send("POST", "/v1/files", body, headers={"Content-Type": content_type}))
        self.assert_small(before, 32)
        self.assertEqual(self.target.objects(self.a.project).keys() - kept.keys(), set(), "a refused form left bytes behind")

    def test_s63_json_that_nests(self):
        for depth, statuses in ((127, (400,)), (128, (400,)), (100_000, (400,))):
            for opening, closing in (("[", "]"), ('{"a":', "}")):
                inner = "1" if opening != "[" else ""
                body = (opening * depth + inner + closing * depth).encode()
                self.assertIn(self.send("POST", "/v1/chat/completions", body).status, statuses)
        # As deep as the parser goes, where any JSON may stand.
        schema = {"type": "string"}
        for _ in range(50):
            schema = {"type": "object", "properties": {"a": schema}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        self.assertIn(self.chat(tools=tools, tool_choice="required").status, (200, 400))

    def test_s64_keys_that_come_twice_in_a_request(self):
        """The last one counts, as at OpenAI; what is judged and what is done are the same value."""
        body = b'{"model": "' + MODEL.encode() + b'", "model": "no-such-model", "messages": [{"role": "user", "content": "Hi"}]}'
        self.refused(self.send("POST", "/v1/chat/completions", body), 404, code="model_not_found")

    def test_s65_numbers_that_are_none(self):
        for number in ("NaN", "Infinity", "1e999", "-1e999", "1" * 400, "0x10", "1_000", "01", "1e", "--1"):
            body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hi"}}], "temperature": {number}}}'
            self.refused(self.send("POST", "/v1/chat/completions", body.encode()))
        for seed in ("1" * 30, "1.5", "1e300"):
            body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hi"}}], "seed": {seed}}}'
            self.refused(self.send("POST", "/v1/chat/completions", body.encode()), param="seed")

    def test_s76_templates_and_adapters_from_the_client(self):
        for field, value in (("chat_template", "{{ 7 * 7 }}"), ("chat_template_kwargs", {"x": "y"}), ("lora_path", "/etc"), ("documents", []),
                             ("lora_request", {"lora_name": "x", "lora_path": "/etc/passwd"}), ("add_generation_prompt", False),
                             ("continue_final_message", True), ("guided_regex", "(a+)+$"), ("extra_body", {}), ("prompt", "x")):
            self.refused(self.chat(**{field: value}), code="unknown_parameter", param=field)

    def test_s80_names_of_models_with_tricks(self):
        own = self.a.model
        evil = ["ft:base:org:x/../../y", "../../etc/passwd", own + "/../x", own.upper(), own + " ", " " + own, own + "\x00", own + "\n",
                MODEL.upper(), MODEL + "\u200b", "ft:" + MODEL, "ft:::", "ft:" + "x" * 500, "%2e%2e%2f", "file:///etc/passwd",
                "https://evil.example/model", "/", ".", ""]
        for name in evil:
            with self.subTest(name):
                for method in ("GET", "DELETE"):
                    if name:
                        self.refused(self.send(method, f"/v1/models/{quoted(name)}"), (400, 404))
                self.refused(self.chat(model=name), (400, 404))
                body = {"model": name, "training_file": self.a.file}
                self.refused(self.send("POST", "/v1/fine_tuning/jobs", body), (400, 404))
        self.refused(self.send("GET", "/v1/models/" + "x" * 5000), 404)
        self.refused(self.chat(model="x" * 5000), code="string_above_max_length")
        for suffix in ("x" * 65, "a b", "a:b", "a/b", "..", "\u00e4", "a\x00", "", "a\n"):
            if suffix == "..":
                continue
            body = {"model": MODEL, "training_file": self.a.file, "suffix": suffix}
            self.refused(self.send("POST", "/v1/fine_tuning/jobs", body), param="suffix")

    def test_s89_a_job_that_tells_a_third_party(self):
        """No job calls anybody, so there is no address to judge: what would make it call is refused."""
        for integration in ({"type": "wandb", "wandb": {"project": "x", "base_url": "http://169.254.169.254"}}, {"type": "wandb", "wandb": {"project": "x"}},
                            {"type": "other", "url": "https://127.0.0.1"}):
            body = {"model": MODEL, "training_file": self.a.file, "integrations": [integration]}
            reply = self.refused(self.send("POST", "/v1/fine_tuning/jobs", body))
            self.assertTrue(reply.error["param"].startswith("integrations"), reply)

    def test_s95_parameters_beyond_all_bounds(self):
        for extra, param in (({"max_tokens": 10**12}, "max_tokens"), ({"n": 1000}, "n"), ({"stop": ["x"] * 10**6}, "stop"),
                             ({"stop": "x" * 10**6}, "stop"), ({"logit_bias": {str(i): 1 for i in range(500_000)}}, "logit_bias"),
                             ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"), ({"temperature": 1e300}, "temperature"),
                             ({"top_k": 2**40}, "top_k"), ({"stop_token_ids": [1] * 10**5}, "stop_token_ids"),
                             ({"max_completion_tokens": -1}, "max_completion_tokens")):
            with self.subTest(param):
                self.refused(self.chat(**extra), param=param)
        tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(10_000)]
        self.refused(self.chat(tools=tools), param="tools")
        completion = {"model": MODEL, "prompt": ["x"] * 10_000}
        self.refused(self.send("POST", "/v1/completions", completion), param="prompt")
        self.refused(self.send("POST", "/v1/completions", {"model": MODEL, "prompt": [1] * 200_000, "max_tokens": 1}))
        self.refused(self.chat("x" * (1 << 20)), code="context_length_exceeded")

    def test_s97_a_client_that_leaves_frees_its_place(self):
        def leave():
            body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "stream": True,
                               "n": 8}).encode()
            with Wire(self.target) as wire:
                wire.send(head("POST", "/v1/chat/completions", key=self.a.key, content_length=len(body)) + body)
                self.assertIn(b"200", wire.file.readline())

        begun = time.monotonic()
        for _ in range(20):  # 160 answers of 900 tokens; the worker has 16 places.
            leave()
        self.assertEqual(self.chat(max_tokens=1).status, 200)
        self.assertLess(time.monotonic() - begun, 10)

    def test_s98_limits_and_cursors_of_every_list(self):
        n_lists, own = 0, World(self.a)
        for operation in all_operations():
            names = [p["name"] for p in operation.parameters]
            path, key = operation.path, self.target.admin_key if operation.is_administrators else None
            if "limit" not in names:
                continue
            n_lists += 1
            for name in operation.ids:
                path = path.replace("{%s}" % name, quoted(own[kind_in_path(operation, name)]))
            more = "&start_time=1" if "start_time" in names else ""
            for limit in ("-1", "0", "1000000001", "1e9", "abc", "1.5", "%00", "9" * 40):
                with self.subTest(path=path, limit=limit):
                    self.refused(self.send(operation.method, f"{path}?limit={limit}{more}", key=key), param="limit")
            if "after" in names:
                for after in ("x" * 4000, "%00", "%27", "%F0%9F%98%80"):
                    with self.subTest(path=path, after=after[:9]):
                        self.refused(self.send(operation.method, f"{path}?after={after}", key=key), (400, 404), param="after")
        self.assertGreaterEqual(n_lists, 20)

    def test_s101_schemas_that_would_take_for_ever(self):
        deep = {"type": "string"}
        for _ in range(40):
            deep = {"anyOf": [deep, {"type": "array", "items": deep}]} if _ < 12 else {"type": "array", "items": deep}
        bombs = {
            "backtracking": {"type": "string", "pattern": "^(a+)+$"},
            "repetition": {"type": "string", "pattern": "((a{0,1000}){0,1000}){0,1000}"},
            "alternatives": deep,
            "itself": {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"},
            "for ever": {"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}}, "$ref": "#/$defs/x"},
            "words": {"enum": [f"word{i}" for i in range(20_000)]},
            "long": {"type": "string", "minLength": 10**9},
            "items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
            "remote": {"$ref": "http://127.0.0.1:1/schema.json"},
            "file": {"$ref": "file:///etc/passwd"},
            "properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}},
        }
        for name, schema in bombs.items():
            with self.subTest(name):
                begun = time.monotonic()
                shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": schema}}}}
                reply = self.chat(response_format=shape, max_tokens=2)
                self.assertIn(reply.status, (200, 400), reply)
                self.assertLess(time.monotonic() - begun, 5)
                self.assertNotIn("root:", reply.body.decode())

    def test_s114_metacharacters_come_back_as_they_were(self):
        for i, text in enumerate(METACHARACTERS):
            with self.subTest(text):
                stored = {"model": MODEL, "training_file": self.a.file, "metadata": {text[:64]: text, "i": str(i)}}
                job = self.send("POST", "/v1/fine_tuning/jobs", stored)
                self.assertEqual(job.status, 200, job)
                id = job.json()["id"]
                self.send("POST", f"/v1/fine_tuning/jobs/{id}/cancel")
                self.assertEqual(self.send("GET", f"/v1/fine_tuning/jobs/{id}").json()["metadata"], stored["metadata"])
                query = f"metadata[{quoted(text[:64])}]={quoted(text)}"
                found = self.send("GET", f"/v1/fine_tuning/jobs?{query}").json()["data"]
                self.assertEqual([job["id"] for job in found], [id])
                for path in (f"/v1/files/{quoted(text)}", f"/v1/fine_tuning/jobs/{quoted(text)}", f"/v1/models/{quoted(text)}",
                             f"/v1/x/models/{quoted(text)}/export"):
                    self.refused(self.send("GET", path), (400, 404))
                self.assertIn(self.send("GET", f"/v1/files?purpose={quoted(text)}&order={quoted(text)}").status, (200, 400))
                self.refused(self.send("GET", f"/v1/x/models/{quoted(self.a.model)}/export?format={quoted(text)}"), param="format")
                self.assertEqual(self.chat(text, user=text, metadata={"x": text}).status, 200)
                self.assertIn(self.chat(stop=text).status, (200, 400))
        for path, body in (("fine_tuning/jobs", {"model": MODEL, "training_file": self.a.file, "metadata": {"x": "a\x00b"}}),
                           ("fine_tuning/jobs", {"model": "a\x00b", "training_file": "file-\x00"}),
                           ("chat/completions", {"model": "a\x00b", "messages": [{"role": "user", "content": "a\x00b"}]})):
            self.refused(self.send("POST", f"/v1/{path}", body), (400, 404))
        self.assertEqual(self.chat("a\x00b").status, 200)
