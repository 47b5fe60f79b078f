"""How much one project may take: rates, answers at the same time, jobs (API4, API6)."""

import json
import threading
import time

from attack import MAX_UNFINISHED_JOBS, MODEL, Wire, head, in_both_forms, service, wait_until

PER_MINUTE = 12
DURATION = r"(\d+ms|(\d+h)?(\d+m)?[\d.]+s)"


@in_both_forms
class Limits:
    def limited(self, requests, tokens=1_000_000):
        """A project with a limit of its own."""
        tenant = self.target.tenant(f"limited {time.time()}", "luthier")
        self.target.execute("insert into rate_limits (project_id, model, requests_per_minute, tokens_per_minute, updated_at) "
                            f"values ('{tenant.project}', '{MODEL}', {requests}, {tokens}, 1)")
        return tenant

    def ask(self, tenant, content="Hi", **options):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return self.send("POST", "/v1/chat/completions", body, key=tenant.key, **options)

    def test_s92_twice_as_many_requests_as_there_may_be(self):
        tenant = self.limited(PER_MINUTE)
        replies = [self.ask(tenant) for _ in range(2 * PER_MINUTE)]
        n_answered = sum(reply.status == 200 for reply in replies)
        self.assertTrue(PER_MINUTE - 1 <= n_answered <= PER_MINUTE + 3, [reply.status for reply in replies])
        for reply in replies:
            self.assertEqual(reply.headers["x-ratelimit-limit-requests"], str(PER_MINUTE))
            for what in ("requests", "tokens"):
                self.assertGreaterEqual(int(reply.headers[f"x-ratelimit-remaining-{what}"]), 0)
                self.assertRegex(reply.headers[f"x-ratelimit-reset-{what}"], f"^{DURATION}$")
            if reply.status != 200:
                self.refused(reply, 429, code="rate_limit_exceeded")
                self.assertEqual(reply.error["type"], "requests")
                self.assertGreaterEqual(int(reply.headers["retry-after"]), 1)
        self.assertEqual(self.ask(self.a).status, 200, "another project pays for it")

    def test_s92_more_tokens_than_there_may_be(self):
        tenant = self.limited(1000, 600)
        replies = [self.ask(tenant, "x" * 600) for _ in range(8)]
        self.assertEqual(replies[0].status, 200)
        self.refused(replies[-1], 429, code="rate_limit_exceeded")
        self.assertEqual(replies[-1].error["type"], "tokens")

    def test_s93_over_two_processes(self):
        limit, addresses = 40, [self.target.address]
        if not self.target.is_embedded:
            addresses.append(self.second_api())
        tenant = self.limited(limit)
        begun = time.monotonic()
        replies = [self.ask(tenant, address=addresses[i % len(addresses)]) for i in range(2 * limit)]
        refilled = limit * (time.monotonic() - begun) / 60
        n_answered = sum(reply.status == 200 for reply in replies)
        self.assertLessEqual(n_answered, limit * 1.05 + refilled + 1)
        self.assertGreater(n_answered, limit * 0.8)

    def second_api(self):
        port = service.free_port()
        self.target.service.spawn("second api", service.LUTHIER, "api", "--config", self.target.service.config, env={
            "LUTHIER_API_LISTEN": f"127.0.0.1:{port}", "LUTHIER_API_OPERATIONAL_LISTEN": f"127.0.0.1:{service.free_port()}"})
        self.addCleanup(self.target.service.stop, "second api")
        address = ("127.0.0.1", port)
        wait_until("it answers", lambda: self.send("GET", "/readyz", key="", address=address).status == 200)
        return address

    def test_s94_headers_that_claim_another_address(self):
        tenant = self.limited(1)
        while self.ask(tenant).status == 200:
            pass
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP"):
            value = "for=10.1.2.3" if name == "Forwarded" else "10.1.2.3"
            self.refused(self.ask(tenant, headers={name: value}), 429)

    def test_s96_streams_that_nobody_reads(self):
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "stream": True}).encode()
        request = head("POST", "/v1/chat/completions", key=self.b.key, content_length=len(body)) + body
        before = self.target.resident()
        wires = [Wire(self.target) for _ in range(80)]
        for wire in wires:
            wire.send(request)
        begun = time.monotonic()
        self.assertEqual(self.ask(self.a).status, 200)
        waited = time.monotonic() - begun
        after = self.target.resident()
        for wire in wires:
            wire.close()
        grown = {pid: (after[pid] - bytes) / (1 << 20) for pid, bytes in before.items() if pid in after}
        self.assertLess(max(grown.values()), 96, grown)
        self.assertLess(waited, 30)

    def test_s99_more_jobs_than_there_may_be(self):
        tenant = self.target.tenant(f"busy {time.time()}", "luthier")
        body = {"model": MODEL, "training_file": tenant.upload(), "hyperparameters": {"n_epochs": 50}}
        replies = []

        def create():
            replies.append(self.send("POST", "/v1/fine_tuning/jobs", body, key=tenant.key))

        threads = [threading.Thread(target=create) for _ in range(3 * MAX_UNFINISHED_JOBS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = [reply.json()["id"] for reply in replies if reply.status == 200]
        for reply in replies:
            if reply.status != 200:
                self.refused(reply, 429, code="rate_limit_exceeded")
        for id in made:
            self.send("POST", f"/v1/fine_tuning/jobs/{id}/cancel", key=tenant.key)
        self.assertEqual(len(made), MAX_UNFINISHED_JOBS)
        self.assertEqual(self.send("POST", "/v1/fine_tuning/jobs", body, key=tenant.key).status, 200, "the room is not given back")

    def test_s100_jobs_that_are_made_and_cancelled_leave_the_room_as_it_was(self):
        """More than there is room for; tests/soak does it for half an hour."""
        tenant = self.target.tenant(f"fickle {time.time()}", "luthier")
        body = {"model": MODEL, "training_file": tenant.upload(), "hyperparameters": {"n_epochs": 50}}

        def create():
            return self.send("POST", "/v1/fine_tuning/jobs", body, key=tenant.key)

        def cancel(made):
            """And what cancels it again changes nothing: no room is given back twice."""
            id = made.json()["id"]
            for _ in range(2):
                self.send("POST", f"/v1/fine_tuning/jobs/{id}/cancel", key=tenant.key)
            wait_until("it is over", lambda: self.send("GET", f"/v1/fine_tuning/jobs/{id}", key=tenant.key).json()["status"] == "cancelled")

        for _ in range(MAX_UNFINISHED_JOBS + 5):
            made = create()
            self.assertEqual(made.status, 200, made)
            cancel(made)
        made = [create() for _ in range(MAX_UNFINISHED_JOBS)]
        self.assertEqual([reply.status for reply in made], [200] * MAX_UNFINISHED_JOBS)
        self.refused(create(), 429, code="rate_limit_exceeded")
        for reply in made:
            cancel(reply)
        unfinished = f"select count(*) from jobs where project_id = '{tenant.project}' and state <> 'cancelled'"
        self.assertEqual(self.target.rows(unfinished), [("0",)])
