"""Files that come in parts, through openai-python, in both forms."""

import concurrent.futures
import hashlib
import json
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish

MIB = 1024 * 1024
# Parts of their own size, so that one of them passes through S3 in several pieces.
SIZES = (20 * MIB, 5 * MIB, 1, 3 * MIB)


def rows(n_bytes):
    """JSONL of exactly so many bytes: large rows, and a short one at the end."""
    row = lambda text: json.dumps({"text": text}).encode() + b"\n"  # noqa: E731
    frame = len(row(""))
    full, rest = divmod(n_bytes, 100_000)
    lengths = [100_000] * (full - 1) + [100_000 + rest]
    return b"".join(row(chr(97 + i % 26) * (n - frame)) for i, n in enumerate(lengths))


class Uploads(OneService):
    """Mixed into one class per form."""

    def announce(self, data, **options):
        return self.client.uploads.create(
            bytes=len(data), filename="big.jsonl", mime_type="text/jsonl", purpose="fine-tune", **options)

    def test_a_job_trains_on_a_file_that_came_in_chunks(self):
        data = examples(24)
        upload = self.client.uploads.upload_file_chunked(
            file=data, filename="train.jsonl", bytes=len(data), mime_type="text/jsonl", purpose="fine-tune",
            part_size=1000, md5=hashlib.md5(data).hexdigest())
        self.assertEqual((upload.status, upload.file.bytes, upload.file.purpose), ("completed", len(data), "fine-tune"))
        self.assertEqual(self.client.files.content(upload.file.id).read(), data)
        self.assertIn(upload.file.id, [file.id for file in self.client.files.list(purpose="fine-tune")])
        job = self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=upload.file.id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}})
        self.assertEqual(finish(self.client, job.id).status, "succeeded", self.service.logs())

    def test_large_parts_sent_at_once_make_the_file_in_the_order_of_their_names(self):
        data, places, start = rows(sum(SIZES)), [], 0
        for size in SIZES:
            places.append(slice(start, start + size))
            start += size
        upload = self.announce(data, expires_after={"anchor": "created_at", "seconds": 3600})
        send = lambda place: self.client.uploads.parts.create(upload_id=upload.id, data=data[place])  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
            parts = list(pool.map(send, places))
        done = self.client.uploads.complete(
            upload.id, part_ids=[part.id for part in parts], md5=hashlib.md5(data).hexdigest())
        self.assertEqual(done.file.expires_at, done.file.created_at + 3600)
        content = self.client.files.content(done.file.id).read()
        self.assertEqual(hashlib.sha256(content).digest(), hashlib.sha256(data).digest())

    def test_a_wrong_md5_makes_no_file_and_the_right_one_does(self):
        upload = self.announce(b"{}\n")
        part = self.client.uploads.parts.create(upload_id=upload.id, data=b"{}\n")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.uploads.complete(upload.id, part_ids=[part.id], md5="0" * 32)
        self.assertEqual(caught.exception.param, "md5")
        done = self.client.uploads.complete(upload.id, part_ids=[part.id], md5=hashlib.md5(b"{}\n").hexdigest())
        self.assertEqual(done.status, "completed")
        for late in (lambda: self.client.uploads.complete(upload.id, part_ids=[part.id]),
                     lambda: self.client.uploads.cancel(upload.id)):
            with self.assertRaises(openai.BadRequestError) as caught:
                late()
            self.assertEqual(caught.exception.code, "invalid_upload_state")

    def test_a_cancelled_upload_takes_nothing_more(self):
        upload = self.announce(b"{}\n")
        part = self.client.uploads.parts.create(upload_id=upload.id, data=b"{}\n")
        self.assertEqual(self.client.uploads.cancel(upload.id).status, "cancelled")
        for late in (lambda: self.client.uploads.parts.create(upload_id=upload.id, data=b"x" * MIB),
                     lambda: self.client.uploads.complete(upload.id, part_ids=[part.id]),
                     lambda: self.client.uploads.cancel(upload.id)):
            with self.assertRaises(openai.BadRequestError):
                late()


class EmbeddedUploads(Uploads, unittest.TestCase):
    make = Embedded


class ProductionUploads(Uploads, unittest.TestCase):
    make = Production
