"""What takes its time: keys that were revoked (API2), clients and receivers that say next to nothing (API4, API10). It begins when the service starts, and is
judged at the end of the run."""

import time

from attack import in_both_forms, wait_until

# What the service waits for a receiver; for a body that brings less than 1 KiB, and for a head.
RECEIVER_S, BODY_S, HEAD_S = 10, 30, 60


@in_both_forms
class Slow:
    def test_s05_a_key_that_was_revoked_by_another_process(self):
        def is_refused():
            return self.send("GET", "/v1/models", key=self.target.revoked_key).status == 401

        wait_until("the key opens nothing any more", is_refused, max(1, self.target.began + 61 - time.monotonic()))

    def test_s57_clients_that_dribble(self):
        dribbling = self.target.dribbling
        begun = time.monotonic()
        self.assertEqual(self.send("GET", "/v1/models").status, 200)
        self.assertLess(time.monotonic() - begun, 2, "others wait for them")
        for what, wires, limit_s in (("bodies", dribbling.wires[1::2], BODY_S), ("heads", dribbling.wires[::2], HEAD_S)):
            left_s = max(5, self.target.began + limit_s + 10 - time.monotonic())
            wait_until(f"the service lets the {what} go", lambda: all(wire.has_more() for wire in wires), left_s)
            for wire in wires:
                reply = wire.reply()
                self.assertTrue(reply is None or reply.status == 408, reply)

    def test_s87_receivers_that_do_not_end_or_are_others(self):
        outcomes = self.target.hopeless.ended()
        self.assertEqual(len(outcomes), 9)
        for what, status, reply, took_s, n_bytes in outcomes:
            with self.subTest(what):
                self.assertEqual(reply.status, status, reply)
                if status == 400:
                    self.refused(reply, 400, code="webhook_endpoint_unreachable")
                self.assertLess(took_s, RECEIVER_S + 5)
                # What the buffers of both sides hold; nobody reads on behind the head.
                self.assertLess(n_bytes, 16 << 20)
