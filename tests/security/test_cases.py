"""Every case of the list is attacked here, judged by a test elsewhere, or says why it is not."""

import re
import sys
import unittest
from pathlib import Path

from attack import ROOT

N_CASES = 120
# Judged where it can be judged better: the file, and what stands in it.
ELSEWHERE = {
    12: ("api/tests/administration/keys.rs", "a_user_s_key_opens_while_the_user_is_a_member"),
    13: ("api/tests/administration/keys.rs", "a_service_account_without_a_role_opens_nothing"),
    14: ("api/tests/administration/keys.rs", "a_service_account_comes_with_its_only_plain_key"),
    42: ("tests/e2e/test_admin.py", "test_a_checkpoint_is_shared_and_taken_back"),
    47: ("store/tests/suite/row_security.rs", "s47_the_role_of_requests_sees_nothing_without_a_project"),
    48: ("store/tests/suite/row_security.rs", "s48_every_table_with_rows_of_projects_is_behind_the_wall"),
    50: ("api/tests/administration/users.rs", "nobody_but_an_owner_administers_and_the_last_one_stays"),
    51: ("api/tests/administration/users.rs", "nobody_but_an_owner_administers_and_the_last_one_stays"),
    110: ("api/tests/administration/audit_log.rs", "every_change_is_one_entry_with_who_where_and_what"),
    75: ("text/tests/templates/jinja.rs", "a_hostile_template_is_an_error_and_not_the_end_of_the_process"),
    77: ("text/tests/templates/jinja.rs", "what_python_refuses_is_refused"),
    84: ("platform/src/outbound/tests.rs", "the_address_that_is_judged_is_the_one_that_is_called"),
    85: ("platform/src/outbound/tests.rs", "redirections_are_answers_and_nobody_follows_them"),
    87: ("platform/src/outbound/tests.rs", "receivers_that_do_not_end_hold_nobody"),
    90: ("tests/e2e/test_webhooks.py", "test_both_secrets_verify_while_one_replaces_the_other"),
    91: ("scheduler/tests/suite/webhooks.rs", "a_receiver_that_fails_at_first_is_told_again_under_the_same_id"),
    116: ("scheduler/tests/suite/webhooks.rs", "a_secret_from_another_row_signs_nothing"),
    106: ("api/tests/chat.rs", "The server had an error while processing your request."),
    119: ("tests/tidy/dependencies.rs", "every_licence_goes_with_apache_2"),
}
NOT_HERE = {
    "there is no console yet": [26, 27, 28, 29, 30, 31, 32, 113],
    "a job names no third party: `integrations` is refused": [89],
    "base models, with their tokenizers and templates, are installed by the operator alone": [81],
    "10,000 jobs take longer than a suite may; tests/soak makes and cancels jobs for half an hour": [100],
    "a job is trained in the worker's own process and runs no code of a tenant, so there is no child to shut in": [117],
}


def numbers():
    """The cases that tests of this folder are named after."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = re.findall(r"def test((?:_s\d+)+)_", text)
    return {int(n) for name in names for n in re.findall(r"\d+", name)}


class Cases(unittest.TestCase):
    def test_every_case_is_attacked_or_says_why_not(self):
        tested, left = numbers(), {n for cases in NOT_HERE.values() for n in cases}
        for name, (path, text) in ELSEWHERE.items():
            self.assertIn(text, (ROOT / path).read_text(), f"s{name}: {path}")
        self.assertEqual((tested | set(ELSEWHERE)) & left, set(), "these are attacked, and said not to be")
        self.assertEqual(set(range(1, N_CASES + 1)) - tested - set(ELSEWHERE) - left, set(), "nobody says anything of these")
        print(file=sys.stderr)
        for reason, cases in NOT_HERE.items():
            print(f"skipped: {', '.join(f's{n:02}' for n in cases)} because {reason}", file=sys.stderr)
