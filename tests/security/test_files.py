"""Files: their sizes, names, types and ends (API4, API8)."""

import re

from attack import MAX_FILE_BYTES, MULTIPART, finish, form, in_both_forms, quoted, wait_until

NAMES = ["../../x.jsonl", "/etc/passwd.jsonl", "C:\\x.jsonl", "..\\..\\x.jsonl", "\u202elnosj.exe.jsonl", "a;b=c.jsonl", "%2e%2e%2fx.jsonl",
         "a%0d%0aX-Evil: y.jsonl", "\u00e4\u00f6\U0001f600.jsonl", ".jsonl", "a b'c`d$(e).jsonl", "<img src=x onerror=alert(1)>.jsonl", "CON.jsonl",
         "x" * 5000 + ".jsonl"]


@in_both_forms
class Files:
    def create(self, name, content=b"{}", purpose="fine-tune", **options):
        parts = [("purpose", None, purpose), ("file", name, content)]
        return self.target.post_form(parts, **options)

    def test_s56_a_file_that_is_too_large(self):
        kept = self.target.objects(self.a.project)
        for parts in ([("purpose", None, "fine-tune"), ("file", "a.jsonl", b"x" * (MAX_FILE_BYTES + 1))],
                      [("file", "a.jsonl", b"x" * (MAX_FILE_BYTES + 1)), ("purpose", None, "fine-tune")]):
            reply = self.refused(self.target.post_form(parts), 413)
            self.assertIn(str(MAX_FILE_BYTES), reply.error["message"])
        wait_until("its bytes are gone", lambda: self.target.objects(self.a.project).keys() <= kept.keys(), 10)
        self.refused(self.target.post_form([("purpose", None, "x" * 5000), ("file", "a.jsonl", b"{}")]))
        self.refused(self.target.post_form([("purpose", None, "no-such-purpose"), ("file", "a.jsonl", b"x" * 100_000)]), param="purpose")
        wait_until("nothing else stays", lambda: self.target.objects(self.a.project).keys() <= kept.keys(), 10)

    def test_s60_file_names_with_tricks(self):
        for name in NAMES:
            with self.subTest(name[:40]):
                file = self.create(name.replace("\\", "\\\\").replace('"', '\\"'), purpose="user_data")
                self.assertEqual(file.status, 200, file)
                file = file.json()
                self.assertLessEqual(len(file["filename"]), 255)
                self.assertEqual(file["filename"], name[:255])
                content = self.send("GET", f"/v1/files/{file['id']}/content")
                self.assertIn(content.status, (200, 400), content)
                if content.status == 200:
                    self.assert_one_attachment(content.headers["content-disposition"])
                self.send("DELETE", f"/v1/files/{file['id']}")
        paths = [path for path in self.target.objects() if "passwd" in path or "Evil" in path or "x.jsonl" in path]
        self.assertEqual(paths, [], "a name became a path")

    def assert_one_attachment(self, disposition):
        self.assertRegex(disposition, r'^attachment; filename="[ -!#-$&-.0-\[\]-~]*"; filename\*=UTF-8\'\'[A-Za-z0-9._~%-]*$')

    def test_s60_control_characters_in_a_name(self):
        for raw in (b"a\x00b.jsonl", b"a\x07\x1b[31mb.jsonl", b"a\xff\xfeb.jsonl", b"a\x7f.jsonl"):
            body = (b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX\r\n"
                    b"Content-Disposition: form-data; name=\"file\"; filename=\"" + raw + b"\"\r\n\r\n{}\r\n--XX--\r\n")
            reply = self.send("POST", "/v1/files", body, headers={"Content-Type": MULTIPART})
            if reply.status == 200:
                self.assertTrue(reply.json()["filename"].isprintable(), reply)
                content = self.send("GET", f"/v1/files/{reply.json()['id']}/content")
                self.assert_one_attachment(content.headers["content-disposition"])
            else:
                self.refused(reply)
        # A line break ends the header, and what follows it is another header of the part.
        body = (b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX\r\n"
                b"Content-Disposition: form-data; name=\"file\"; filename=\"a\r\nX: y.jsonl\"\r\n\r\n{}\r\n--XX--\r\n")
        self.refused(self.send("POST", "/v1/files", body, headers={"Content-Type": MULTIPART}))

    def test_s71_a_page_that_is_uploaded_is_never_shown_as_one(self):
        body = (b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX\r\n"
                b"Content-Disposition: form-data; name=\"file\"; filename=\"page.html.jsonl\"\r\nContent-Type: text/html\r\n\r\n"
                b"<script>alert(1)</script>\r\n--XX--\r\n")
        file = self.send("POST", "/v1/files", body, headers={"Content-Type": MULTIPART}).json()
        content = self.send("GET", f"/v1/files/{file['id']}/content")
        self.assertEqual(content.body, b"<script>alert(1)</script>")
        self.assertEqual(content.headers["content-type"], "application/octet-stream")
        self.assertEqual(content.headers["x-content-type-options"], "nosniff")
        self.assertTrue(content.headers["content-disposition"].startswith("attachment;"))
        self.assertEqual(content.headers["content-security-policy"], "sandbox")
        for query in ("?content_type=text/html", "?response-content-type=text/html"):
            again = self.send("GET", f"/v1/files/{file['id']}/content{query}", headers={"Accept": "text/html"})
            self.assertEqual(again.headers["content-type"], "application/octet-stream")

    def test_s72_equal_files_of_two_projects_know_nothing_of_each_other(self):
        content = b'{"messages": []}\n' * 1000
        mine, theirs = self.a.upload(content), self.b.upload(content)
        objects = [path for path in self.target.objects() if mine in path or theirs in path]
        self.assertGreaterEqual(len(objects), 2, "one object stands for both")
        self.assertEqual(self.send("DELETE", f"/v1/files/{mine}").status, 200)
        self.assertEqual(self.b.client.files.content(theirs).read(), content)
        self.b.client.files.delete(theirs)

    def test_s73_a_training_file_deleted_during_its_job(self):
        left, gone = self.a.upload(), self.a.upload()
        jobs = [self.a.order(file, n_epochs=20, seed=5) for file in (left, gone)]
        self.assertEqual(self.send("DELETE", f"/v1/files/{gone}").json(), {"id": gone, "object": "file", "deleted": True})
        self.refused(self.send("GET", f"/v1/files/{gone}"), 404)
        ended = [finish(self.a.client, job, 120) for job in jobs]
        self.assertEqual([job.status for job in ended], ["succeeded", "succeeded"], ended)
        undisturbed, disturbed = (self.a.client.files.content(job.result_files[0]).read() for job in ended)
        self.assertEqual(disturbed, undisturbed)
