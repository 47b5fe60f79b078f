"""Webhooks on their way: names that change their meaning, receivers that lead elsewhere or nowhere, and who signed what (API7, API10). The
names and public addresses are those of a small Internet of the test (`internet.c`), so the service is configured as ever."""

import json
import time

import openai

from attack import in_both_forms, wait_until
from internet import INTERNET, Receiver, answer
from worlds import drawn

# Two addresses of everyone's, and one that nobody but the host itself may call; the test stands behind all three.
PUBLIC, OTHER, INSIDE = "93.184.215.14", "93.184.215.15", "127.0.0.1"
ENDED, SAMPLE = "fine_tuning.job.cancelled", {"event_type": "fine_tuning.job.succeeded"}


@in_both_forms
class Receivers:
    def receiver(self, address=PUBLIC, answers=(), certificate="hook"):
        """One behind the address."""
        receiver = Receiver(answers, certificate)
        self.addCleanup(receiver.close)
        INTERNET.route(address, receiver)
        return receiver

    def host(self, *addresses):
        """A new name for them."""
        host = f"{drawn().lower()}.hooks.example"
        INTERNET.name(host, *addresses)
        return host

    def endpoint(self, host):
        body = {"name": "hook", "url": f"https://{host}/hook", "event_types": [ENDED]}
        made = self.send("POST", "/v1/webhook_endpoints", body)
        self.assertEqual(made.status, 200, made)
        self.addCleanup(self.send, "DELETE", f"/v1/webhook_endpoints/{made.json()['id']}")
        return made.json()

    def try_out(self, id, body=SAMPLE):
        return self.send("POST", f"/v1/webhook_endpoints/{id}/test", body)

    def cancel(self):
        """Something that endpoints are told of."""
        job = self.a.order(self.a.file)
        self.assertEqual(self.send("POST", f"/v1/fine_tuning/jobs/{job}/cancel").status, 200)
        return job

    def delivery(self, endpoint):
        """(tries, when the next one is in microseconds or nothing, when it was delivered or nothing, why the last try failed)."""
        rows = self.target.rows("select n_tries, coalesce(next_try_at, 0), coalesce(delivered_at, 0), coalesce(last_failure, '') "
                                f"from webhook_deliveries where endpoint_id = '{endpoint}'")
        return [(int(n), int(next), int(at), why) for n, next, at, why in rows][-1] if rows else (0, 0, 0, "")

    def tried(self, endpoint, n=1):
        """The delivery once the scheduler has tried it so often."""
        return wait_until(f"{n} tries", lambda: self.delivery(endpoint) if self.delivery(endpoint)[0] >= n else None, 30)

    def refused_on_its_way(self, endpoint, inside):
        """Neither a test nor the scheduler calls where the name leads by now."""
        reply = self.refused(self.try_out(endpoint), 400, code="webhook_endpoint_unreachable")
        self.assertIn("is not a public host", reply.error["message"])
        self.cancel()
        self.assertIn("is not a public host", self.tried(endpoint)[3])
        self.assertEqual(inside.n_calls, 0)

    def test_s84_a_name_that_means_another_address_by_now(self):
        receiver, inside = self.receiver(), self.receiver(INSIDE)
        host = self.host(PUBLIC)
        endpoint = self.endpoint(host)["id"]
        # What is attacked works: a name of everyone's is called.
        self.assertEqual(self.try_out(endpoint).json()["status_code"], 200)
        self.assertEqual((receiver.n_calls, receiver.received[0].path), (1, "/hook"))
        INTERNET.name(host, INSIDE)
        self.refused_on_its_way(endpoint, inside)
        again = {"name": "hook", "url": f"https://{host}/hook", "event_types": [ENDED]}
        self.refused(self.send("POST", "/v1/webhook_endpoints", again), param="url")
        self.assertEqual(receiver.n_calls, 1)

    def test_s84_one_of_two_addresses_is_not_public(self):
        self.receiver()
        inside = self.receiver(INSIDE)
        for addresses in ((PUBLIC, INSIDE), (INSIDE, PUBLIC), (PUBLIC, "10.0.0.1"), (PUBLIC, "::1"), (PUBLIC, "::ffff:127.0.0.1")):
            with self.subTest(addresses):
                host = self.host(*addresses)
                body = {"name": "hook", "url": f"https://{host}/hook", "event_types": [ENDED]}
                self.refused(self.send("POST", "/v1/webhook_endpoints", body), param="url")
        host = self.host(PUBLIC)
        endpoint = self.endpoint(host)["id"]
        INTERNET.name(host, PUBLIC, INSIDE)
        self.refused_on_its_way(endpoint, inside)

    def test_s85_redirections(self):
        inside, other = self.receiver(INSIDE), self.receiver(OTHER)
        elsewhere = self.host(OTHER)
        statuses = (301, 302, 303, 307, 308)
        targets = (f"https://{INSIDE}/", f"https://{elsewhere}/", "https://169.254.169.254/latest/meta-data")
        ways = [(status, target) for status in statuses for target in targets]
        receiver = self.receiver(answers=[answer(status, f"location: {target}") for status, target in ways])
        endpoint = self.endpoint(self.host(PUBLIC))["id"]
        for status, target in ways:
            with self.subTest(f"{status} {target}"):
                self.assertEqual(self.try_out(endpoint).json()["status_code"], status)
        receiver.answers = [answer(307, f"location: https://{elsewhere}/")]
        self.cancel()
        self.assertIn("answered 307", self.tried(endpoint)[3])
        self.assertEqual((inside.n_calls, other.n_calls), (0, 0))
        self.assertEqual(receiver.n_calls, len(ways) + 1)

    def verified(self, request, secret, **headers):
        """What OpenAI's SDK makes of it."""
        return self.a.client.webhooks.unwrap(request.body, {**request.headers, **headers}, secret=secret)

    def forged(self, request, secret, **headers):
        with self.assertRaises(openai.InvalidWebhookSignatureError):
            self.verified(request, secret, **headers)

    def test_s90_what_was_altered_or_signed_by_an_older_secret(self):
        receiver = self.receiver()
        endpoint = self.endpoint(self.host(PUBLIC))
        id, first = endpoint["id"], endpoint["signing_secret"]
        job = self.cancel()
        wait_until("it is told", lambda: receiver.received)
        request = receiver.received[0]
        event = self.verified(request, first)
        self.assertEqual((event.type, event.data.id), (ENDED, job))
        at = int(request.headers["webhook-timestamp"])
        self.assertLess(abs(at - time.time()), 60)
        self.forged(request, self.endpoint(self.host(PUBLIC))["signing_secret"])
        for name, value in (("webhook-id", "wh_other"), ("webhook-timestamp", str(at - 301)), ("webhook-timestamp", str(at + 1)),
                            ("webhook-signature", "v1," + "A" * 43 + "=")):
            self.forged(request, first, **{name: value})
        body = request.body
        for altered in (body + b" ", body.replace(job.encode(), self.b.job_id.encode()), b"{}"):
            request.body = altered
            self.forged(request, first)
        request.body = body

        def rotated(**more):
            return self.send("POST", f"/v1/webhook_endpoints/{id}/rotate_secret", more).json()["signing_secret"]

        second = rotated(keep_old_secret_active_for_24_hours=True)
        self.assertEqual(self.try_out(id).status, 200)
        both = receiver.received[-1]
        for secret in (first, second):
            self.verified(both, secret)
        # The day is over, for this endpoint.
        self.target.execute(f"update webhook_secrets set active_until = 1 where endpoint_id = '{id}' and active_until is not null")
        self.try_out(id)
        self.verified(receiver.received[-1], second)
        self.forged(receiver.received[-1], first)
        third = rotated()
        self.try_out(id)
        self.verified(receiver.received[-1], third)
        for secret in (first, second):
            self.forged(receiver.received[-1], secret)

    def due_now(self, endpoint):
        self.target.execute(f"update webhook_deliveries set next_try_at = 1 where endpoint_id = '{endpoint}' and next_try_at is not null")

    def test_s91_a_receiver_that_fails_is_told_one_event_again_and_later(self):
        receiver = self.receiver(answers=[answer(500)] * 3)
        made = self.endpoint(self.host(PUBLIC))
        endpoint = made["id"]
        self.cancel()
        waits = {}
        for n in (1, 2, 5):
            if n == 5:
                self.target.execute(f"update webhook_deliveries set n_tries = 4 where endpoint_id = '{endpoint}'")
                self.due_now(endpoint)
            tries, next_at, delivered_at, why = self.tried(endpoint, n)
            waits[n] = next_at / 1e6 - time.time()
            self.assertEqual((tries, delivered_at), (n, 0))
            self.assertIn("answered 500", why)
            if n == 1:
                time.sleep(1.2)
                self.assertEqual(len(receiver.received), 1, "it is not time yet")
                self.due_now(endpoint)
        # Longer each time, by a part of a tenth that is drawn.
        for n, wait_s in ((1, 5), (2, 300), (5, 18_000)):
            self.assertTrue(wait_s - 3 < waits[n] < 1.1 * wait_s + 1, waits)
        self.assertGreater(waits[5], 18_000.5, "no part of it is drawn")
        self.due_now(endpoint)
        wait_until("it is taken", lambda: self.delivery(endpoint)[2])
        self.due_now(endpoint)
        time.sleep(1.2)
        self.assertEqual(len(receiver.received), 4)
        self.assertEqual(len({(request.headers["webhook-id"], request.body) for request in receiver.received}), 1)
        self.assertEqual(self.verified(receiver.received[-1], made["signing_secret"]).type, ENDED)

    def test_s91_a_receiver_that_never_takes_anything_hears_no_more(self):
        receiver = self.receiver(answers=[answer(503)] * 100)
        endpoint = self.endpoint(self.host(PUBLIC))["id"]
        self.cancel()
        self.tried(endpoint)
        days_ago = int((time.time() - 5 * 86_400 - 60) * 1e6)
        self.target.execute(f"update webhook_endpoints set failing_since = {days_ago} where id = '{endpoint}'")
        self.due_now(endpoint)

        def shown():
            return self.send("GET", f"/v1/webhook_endpoints/{endpoint}").json()

        wait_until("it is disabled", lambda: shown()["x_disabled_at"], 20)
        n = len(receiver.received)
        self.cancel()
        self.due_now(endpoint)
        time.sleep(1.2)
        self.assertEqual(len(receiver.received), n)
        # Until its owner says that it is well again.
        self.assertEqual(self.send("POST", f"/v1/webhook_endpoints/{endpoint}", {"name": "well"}).status, 200)
        receiver.answers.clear()
        self.cancel()
        wait_until("it is told again", lambda: len(receiver.received) > n, 20)

    def test_s116_a_secret_in_another_row(self):
        receiver = self.receiver()
        mine, other = (self.endpoint(self.host(PUBLIC))["id"] for _ in range(2))
        self.assertEqual(self.try_out(mine).status, 200)
        sealed = {id: self.target.rows(f"select sealed from webhook_secrets where endpoint_id = '{id}'")[0][0] for id in (mine, other)}
        self.assertNotEqual(*sealed.values())

        def put(text):
            self.target.execute(f"update webhook_secrets set sealed = '{text}' where endpoint_id = '{mine}'")

        put(sealed[other])
        reply = self.target.send_unjudged("POST", f"/v1/webhook_endpoints/{mine}/test", SAMPLE)
        self.assertEqual(reply.status, 500, reply)
        self.assertNotIn("secret", json.dumps(reply.error).lower())
        self.cancel()
        self.assertNotEqual(self.tried(mine)[3], "", "the scheduler signs with it")
        flipped = sealed[mine][:-3] + ("A" if sealed[mine][-3] != "A" else "B") + sealed[mine][-2:]
        put(flipped)
        self.assertEqual(self.target.send_unjudged("POST", f"/v1/webhook_endpoints/{mine}/test", SAMPLE).status, 500)
        told = [json.loads(request.body)["type"] for request in receiver.received]
        self.assertEqual(told.count(SAMPLE["event_type"]), 1, "it was signed with another row's secret")
        put(sealed[mine])
        self.assertEqual(self.try_out(mine).status, 200)
