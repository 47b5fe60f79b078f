"""What takes its time: keys that were revoked (API2), clients that say next to nothing (API4). It begins when the service starts, and is
judged at the end of the run."""

import time

from attack import in_both_forms, wait_until

# What the service waits for a body that brings less than 1 KiB, and for a head.
BODY_S, HEAD_S = 30, 60


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
