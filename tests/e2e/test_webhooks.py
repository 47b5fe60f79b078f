"""Webhooks through openai-python: a receiver on loopback that fails at first, verified as the SDK does, in both forms."""

import http.server
import threading
import time
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until

ALLOWED = {"LUTHIER_WEBHOOKS_ALLOWED_HOSTS": "127.0.0.1", "LUTHIER_WEBHOOKS_ALLOW_HTTP": "true"}


class Receiver:
    """Answers with `statuses`, one a request, and then with 200; keeps what came, and has it judged."""

    def __init__(self, judge, statuses=()):
        self.statuses, self.received = list(statuses), []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                judge(body)
                receiver.received.append((dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, n):
        wait_until(f"{n} deliveries", lambda: len(self.received) >= n)
        return self.received[:n]


class Webhooks(OneService):
    """Mixed into one class per form."""

    def receiver(self, statuses=()):
        receiver = Receiver(self.service.judge.judge_webhook, statuses)
        self.addCleanup(receiver.server.shutdown)
        return receiver

    def endpoint(self, url, *event_types):
        made = self.client.webhooks.create(name="tests", url=url, event_types=list(event_types))
        self.addCleanup(self.client.webhooks.delete, made.id)
        return made

    def order(self, content):
        return self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=self.upload(content),
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}})

    def test_a_job_that_ends_is_told_until_the_receiver_took_it(self):
        receiver = self.receiver([500])
        made = self.endpoint(receiver.url, "fine_tuning.job.succeeded")
        job = self.order(examples(12))
        self.assertEqual(finish(self.client, job.id).status, "succeeded")
        (first_headers, first), (headers, body) = receiver.wait_for(2)
        self.assertEqual((first_headers["webhook-id"], first), (headers["webhook-id"], body))
        event = self.client.webhooks.unwrap(body, headers, secret=made.signing_secret)
        self.assertEqual((event.type, event.object, event.data.id), ("fine_tuning.job.succeeded", "event", job.id))
        self.assertTrue(event.id.startswith("evt_"))
        self.assertLess(len(body), 20_000)
        self.refused(body + b" ", headers, made.signing_secret)
        self.refused(body, {**headers, "webhook-id": "wh_x"}, made.signing_secret)
        self.refused(body, {**headers, "webhook-timestamp": str(int(time.time()) - 301)}, made.signing_secret)
        time_of = int(headers["webhook-timestamp"])
        self.assertLess(abs(time_of - time.time()), 60)

    def refused(self, body, headers, secret):
        with self.assertRaises(openai.InvalidWebhookSignatureError):
            self.client.webhooks.unwrap(body, headers, secret=secret)

    def test_a_job_that_fails_or_is_cancelled_is_told_too(self):
        receiver = self.receiver()
        made = self.endpoint(receiver.url, "fine_tuning.job.failed", "fine_tuning.job.cancelled")
        failed = self.order(b"{}\n" * 12)
        self.assertEqual(finish(self.client, failed.id).status, "failed")
        cancelled = self.order(examples(12))
        self.client.fine_tuning.jobs.cancel(cancelled.id)
        unwrap = lambda headers, body: self.client.webhooks.unwrap(body, headers, secret=made.signing_secret)  # noqa: E731
        told = {(event.type, event.data.id) for event in (unwrap(*request) for request in receiver.wait_for(2))}
        expected = {("fine_tuning.job.failed", failed.id), ("fine_tuning.job.cancelled", cancelled.id)}
        self.assertEqual(told, expected)

    def test_both_secrets_verify_while_one_replaces_the_other(self):
        receiver = self.receiver([201])
        made = self.endpoint(receiver.url, "batch.completed")
        tested = self.client.webhooks.test(made.id, event_type="batch.completed")
        self.assertEqual((tested.status_code, tested.success, tested.webhook_endpoint_id), (201, True, made.id))
        rotated = self.client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        self.client.webhooks.test(made.id, event_type="batch.failed")
        last = self.client.webhooks.rotate_secret(made.id)
        self.client.webhooks.test(made.id, event_type="batch.expired")
        (_, (both_headers, both), (one_headers, one)) = receiver.wait_for(3)
        for secret in (made.signing_secret, rotated.signing_secret):
            self.assertEqual(self.client.webhooks.unwrap(both, both_headers, secret=secret).type, "batch.failed")
            self.refused(one, one_headers, secret)
        self.assertEqual(self.client.webhooks.unwrap(one, one_headers, secret=last.signing_secret).type, "batch.expired")

    def test_endpoints_are_managed(self):
        made = self.endpoint("https://example.com/hook", "batch.completed")
        self.assertTrue(made.signing_secret.startswith("whsec_"))
        shown = self.client.webhooks.retrieve(made.id)
        self.assertTrue(shown.signing_secret_hint.endswith(made.signing_secret[-4:]))
        self.assertFalse(hasattr(shown, "signing_secret"))
        changed = self.client.webhooks.update(made.id, name="other")
        self.assertEqual((changed.name, changed.url), ("other", made.url))
        self.endpoint("https://example.com/hook", "batch.failed")
        listed = [endpoint.id for endpoint in self.client.webhooks.list(limit=1)]
        self.assertEqual(len(listed), 2)
        self.assertEqual(listed[1], made.id)
        self.assertIn("batch.expired", self.client.webhooks.event_types.list().data)
        for url in ("http://169.254.169.254/", "https://localhost/", "https://167772161/", "http://10.0.0.1/"):
            with self.assertRaises(openai.BadRequestError) as refused:
                self.endpoint(url, "batch.completed")
            self.assertEqual(refused.exception.param, "url")

    def test_secrets_are_sealed_anew(self):
        self.endpoint("https://example.com/hook", "batch.completed")
        self.assertRegex(self.service.luthier("secrets", "reseal", *self.service.place), r"^0 of [1-9]\d* secrets")


class EmbeddedWithWebhooks(Embedded):
    env = ALLOWED


class ProductionWithWebhooks(Production):
    env = ALLOWED


class WebhooksOfOneProcess(Webhooks, unittest.TestCase):
    make = EmbeddedWithWebhooks


class WebhooksInProduction(Webhooks, unittest.TestCase):
    make = ProductionWithWebhooks


if __name__ == "__main__":
    unittest.main()
