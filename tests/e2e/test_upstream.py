"""The judge of all other tests notices what it is there for."""

import json
import unittest

import upstream

FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.jsonl", "purpose": "batch", "status": "processed"}


@unittest.skipUnless(upstream.document(), f"skipped: no {upstream.SCHEMA.name} in {upstream.KIT.name}/ (set OPENAI_CONFORMANCE_KIT)")
class Upstream(unittest.TestCase):
    def setUp(self):
        # What is judged here is no answer of the service.
        self.addCleanup(upstream.CHECKED.update, dict(upstream.CHECKED))
        self.addCleanup(upstream.CHECKED.clear)

    def judged(self, body, path="/files/file-1", status=200, content_type="application/json"):
        judge = upstream.Judge()
        judge.judge("GET", f"http://127.0.0.1/v1{path}", status, content_type, body if body is None else json.dumps(body))
        return judge.problems

    def test_what_is_as_it_should_be_passes(self):
        self.assertEqual(self.judged(FILE), [])
        self.assertEqual(self.judged({**FILE, "x_more": {"of": "ours"}}), [])
        self.assertEqual(self.judged(None, "/files/file-1/content", content_type="application/octet-stream"), [])

    def test_what_lacks_is_of_another_type_or_has_another_word_is_noticed(self):
        without = {key: value for key, value in FILE.items() if key != "filename"}
        for body, words in (
            (without, "'filename' is a required property"), ({**FILE, "bytes": "3"}, "/bytes: '3' is not of type 'integer'"),
            ({**FILE, "purpose": "other"}, "/purpose: 'other' is not one of"),
        ):
            self.assertIn(words, "\n".join(self.judged(body)))
        error = {"error": {"message": "no", "type": "x", "param": None}}
        self.assertIn("'code' is a required property", "\n".join(self.judged(error, status=404)))
        self.assertIn("is 'text/html', not one of", "\n".join(self.judged(None, content_type="text/html")))
        judge = upstream.Judge()
        judge.judge_webhook(json.dumps({"type": "batch.failed", "id": "evt_1", "created_at": 1, "object": "event", "data": {}}))
        with self.assertRaisesRegex(AssertionError, "webhook batch.failed /data: 'id' is a required property"):
            judge.verdict()


if __name__ == "__main__":
    unittest.main()
