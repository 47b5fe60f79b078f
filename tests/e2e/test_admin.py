"""Administration with openai-python's `client.admin`, on the whole service: keys, projects, members, permissions, the log."""

import subprocess
import unittest

import openai

from service import LUTHIER, MODEL, Embedded, OneService, Production, environment, examples, finish


class Administration(OneService):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.admin_key = cls.service.luthier("admin-key", "create", *cls.service.place)
        cls.admin = cls.administrator(cls.admin_key)
        cls.organization = cls.admin.admin.organization

    @classmethod
    def administrator(cls, key):
        return cls.service.client("none", admin_api_key=key, max_retries=0)

    def with_key(self, key):
        return self.service.client(key, max_retries=0)

    def test_a_project_is_made_used_and_archived(self):
        projects = self.organization.projects
        project = projects.create(name="e2e")
        self.assertEqual(projects.retrieve(project.id).name, "e2e")
        self.assertEqual(projects.update(project.id, name="e2e renamed").name, "e2e renamed")
        account = projects.service_accounts.create(project.id, name="bot")
        key = account.api_key.value
        bot = self.with_key(key)
        self.assertIn(MODEL, [model.id for model in bot.models.list()])
        answer = bot.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
        self.assertTrue(answer.id)
        keys = list(projects.api_keys.list(project.id))
        self.assertEqual([k.id for k in keys], [account.api_key.id])
        self.assertEqual(keys[0].owner.service_account.id, account.id)
        self.assertNotIn(key, keys[0].to_json())
        further = projects.service_accounts.api_keys.create(account.id, project_id=project.id, scopes=["api.files.read"])
        with self.assertRaises(openai.PermissionDeniedError):
            self.with_key(further.value).models.list()
        self.assertEqual(list(self.with_key(further.value).files.list()), [])
        self.assertEqual(projects.archive(project.id).status, "archived")
        with self.assertRaises(openai.AuthenticationError) as refused:
            bot.models.list()
        self.assertEqual(refused.exception.code, "project_archived")
        self.assertNotIn(project.id, [p.id for p in projects.list()])
        self.assertIn(project.id, [p.id for p in projects.list(include_archived=True)])

    def test_a_member_s_key_ends_with_the_membership(self):
        place = self.service.place
        ada = self.service.luthier("user", "add", "ada@example.com", "--name", "Ada", "--role", "owner", *place)
        default = next(p for p in self.organization.projects.list() if p.name == "default")
        make = [LUTHIER, "key", "create", "--project", "default", "--user", "ada@example.com", *map(str, place)]
        refused = subprocess.run(make, capture_output=True, text=True, timeout=60, env=environment())
        self.assertIn("not a member of the project", refused.stderr)
        members = self.organization.projects.users
        self.assertEqual(members.create(default.id, user_id=ada, role="member").email, "ada@example.com")
        key = self.service.luthier(*make[1:])
        self.with_key(key).models.list()
        hers = self.administrator(self.service.luthier("admin-key", "create", "--user", "ada@example.com", *place))
        self.assertEqual([u.id for u in hers.admin.organization.users.list(emails=["ada@example.com"])], [ada])
        with self.assertRaises(openai.BadRequestError) as last:
            hers.admin.organization.users.update(ada, role="reader")
        self.assertEqual(last.exception.code, "last_owner")
        self.assertTrue(members.delete(ada, project_id=default.id).deleted)
        with self.assertRaises(openai.AuthenticationError):
            self.with_key(key).models.list()
        keys = self.organization.projects.api_keys.list(default.id, owner_project_access="inactive")
        self.assertEqual([k.owner.user.email for k in keys], ["ada@example.com"])

    def test_keys_open_what_they_are_for(self):
        admin_keys = self.organization.admin_api_keys
        made = admin_keys.create(name="ci", expires_in_seconds=3600)
        again = self.administrator(made.value).admin.organization
        self.assertIn(made.id, [key.id for key in again.admin_api_keys.list()])
        with self.assertRaises(openai.PermissionDeniedError):
            self.with_key(made.value).models.list()
        with self.assertRaises(openai.PermissionDeniedError) as refused:
            self.administrator(self.service.key).admin.organization.projects.list()
        self.assertEqual(refused.exception.code, "insufficient_permissions")
        self.assertTrue(admin_keys.delete(made.id).deleted)
        with self.assertRaises(openai.AuthenticationError):
            list(again.admin_api_keys.list())
        read_only = self.service.luthier("key", "create", "--project", "default", "--scope", "api.read", *self.service.place)
        self.assertIn(MODEL, [model.id for model in self.with_key(read_only).models.list()])
        with self.assertRaises(openai.PermissionDeniedError):
            self.with_key(read_only).files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")

    def test_invites_and_model_permissions(self):
        invite = self.organization.invites.create(email="eve@example.com", role="reader")
        self.assertEqual(self.organization.invites.retrieve(invite.id).status, "pending")
        self.assertIn(invite.id, [i.id for i in self.organization.invites.list()])
        self.assertTrue(self.organization.invites.delete(invite.id).deleted)
        projects = self.organization.projects
        project = projects.create(name="without models")
        policy = projects.model_permissions.update(project.id, mode="allow_list", model_ids=["another"])
        self.assertEqual(projects.model_permissions.retrieve(project.id).api_model_ids, policy.api_model_ids)
        bot = self.with_key(projects.service_accounts.create(project.id, name="bot").api_key.value)
        self.assertEqual(list(bot.models.list()), [])
        self.assertTrue(projects.model_permissions.delete(project.id).deleted)
        self.assertIn(MODEL, [model.id for model in bot.models.list()])

    def test_a_checkpoint_is_shared_and_taken_back(self):
        job = self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=self.upload(examples(12)), method={
                "type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 12}}})
        model = finish(self.client, job.id).fine_tuned_model
        project = self.organization.projects.create(name="guest")
        guest = self.with_key(self.organization.projects.service_accounts.create(project.id, name="bot").api_key.value)

        def chat():
            return guest.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)

        with self.assertRaises(openai.NotFoundError):
            chat()
        # The SDK sends the client's own key here: an admin key is needed in its place.
        permissions = self.with_key(self.admin_key).fine_tuning.checkpoints.permissions
        granted = list(permissions.create(model, project_ids=[project.id]))
        self.assertEqual([p.project_id for p in granted], [project.id])
        self.assertEqual(chat().model, model)
        file = guest.files.create(file=("train.jsonl", examples(12)), purpose="fine-tune")
        going_on = guest.fine_tuning.jobs.create(model=model, training_file=file.id)
        self.assertEqual(guest.fine_tuning.jobs.cancel(going_on.id).id, going_on.id)
        self.assertEqual([p.id for p in permissions.list(model)], [granted[0].id])
        self.assertTrue(permissions.delete(granted[0].id, fine_tuned_model_checkpoint=model).deleted)
        with self.assertRaises(openai.NotFoundError) as gone:
            chat()
        self.assertEqual(gone.exception.code, "model_not_found")

    def test_the_log_tells_of_it_and_is_whole(self):
        project = self.organization.projects.create(name="logged")
        logs = self.organization.audit_logs
        entries = list(logs.list(project_ids=[project.id], event_types=["project.created"]))
        self.assertEqual([entry.project_created.id for entry in entries], [project.id])
        entry = entries[0]
        self.assertEqual((entry.actor.type, entry.x_ip_address), ("api_key", "127.0.0.1"))
        at = entry.effective_at
        inside = logs.list(resource_ids=[project.id], effective_at={"gte": at, "lte": at})
        self.assertEqual([e.id for e in inside], [entry.id])
        self.assertEqual(list(logs.list(resource_ids=[project.id], effective_at={"gt": at})), [])
        self.assertEqual(len(list(logs.list(limit=1, event_types=["api_key.created"]))) > 1, True, "over pages")
        self.assertIn("the audit log is whole", self.service.luthier("audit", "verify", *self.service.place))


class AdministrationEmbedded(Administration, unittest.TestCase):
    make = Embedded


class AdministrationProduction(Administration, unittest.TestCase):
    make = Production

    def test_an_entry_that_is_taken_out_is_noticed(self):
        self.organization.invites.create(email="mallory@example.com", role="reader")
        service = self.service
        taken = service.psql("delete from audit_log where seq = 1 returning row_to_json(audit_log)", service.database)
        verify = [LUTHIER, "audit", "verify", *map(str, service.place)]
        done = subprocess.run(verify, capture_output=True, text=True, timeout=60, env=environment())
        service.psql("insert into audit_log select * from json_populate_record(null::audit_log, "
                     f"'{taken.replace(chr(39), chr(39) * 2)}')", service.database)
        self.assertEqual((done.returncode, done.stderr.strip()),
                         (1, "error: the audit log is broken: entry 1 is missing or was changed"))

    def test_no_secret_is_in_the_database(self):
        service = self.service
        url = service.config.read_text().split('url = "')[1].split('"')[0]
        dump = subprocess.run(["pg_dump", url], capture_output=True, text=True, timeout=60, check=True).stdout
        self.assertIn("admin_api_keys", dump)
        for key in (service.key, self.admin_key):
            self.assertNotIn(key, dump)
            self.assertNotIn(key[17:-4], dump)


if __name__ == "__main__":
    unittest.main()
