"""The second wall between projects: what the database itself shows, where a query of the service had forgotten whose rows it asks for (API1)."""

import subprocess

from attack import in_both_forms, service

ROLE = "luthier_app"
# Tables whose rows are a project's: by a column, or by the row of such a table that they belong to.
OF_PROJECTS = """with direct as (
    select c.oid from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and (a.attname = 'project_id' or c.relname in ('projects', 'model_aliases')))
  select oid from direct union select r.conrelid from pg_constraint r where r.contype = 'f' and r.confrelid in (select oid from direct)"""


@in_both_forms
class Wall:
    def setUp(self):
        if self.target.is_embedded:
            self.skipTest("SQLite has neither roles nor policies: who may open the file may read it, and `test_s47_the_file_is_its_owner_s` is about that")

    def tables(self):
        """Those that requests read."""
        tables = self.target.rows(f"select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' "
                                  f"and has_table_privilege('{ROLE}', oid, 'select')")
        self.assertGreater(len(tables), 28, tables)
        return [name for name, in tables]

    def seen(self, *settings):
        """How many rows of each table the role of requests is shown, in one session after these statements."""
        tables = self.tables()
        counts = " union all ".join(f"select '{table}', count(*) from {table}" for table in tables)
        done = self.psql(f"set role {ROLE}", *settings, counts)
        self.assertEqual(done.returncode, 0, done)
        seen = dict(line.split("|") for line in done.stdout.splitlines() if "|" in line)
        self.assertEqual(seen.keys(), set(tables))
        return {table: int(n) for table, n in seen.items()}

    def psql(self, *statements):
        """One session, each statement for itself."""
        url = f"{service.POSTGRES.rsplit('/', 1)[0]}/{self.target.service.database}"
        given = [word for statement in statements for word in ("-c", statement)]
        return subprocess.run(["psql", url, "-At", "-v", "ON_ERROR_STOP=1", *given], capture_output=True, text=True, timeout=60)

    def name(self, project, in_transaction):
        return f"select set_config('luthier.project', '{project}', {str(in_transaction).lower()})"

    def test_s47_the_role_of_requests_sees_nothing_of_nobody(self):
        self.a.job, self.b.file
        self.assertGreater(int(self.target.rows("select count(*) from files")[0][0]), 1, "there is something to be seen")
        mine = self.seen(self.name(self.a.project, False))
        self.assertTrue(all(mine[table] for table in ("files", "jobs", "events", "models", "checkpoints", "projects")), mine)
        for settings in ((), (self.name("", False),), (self.name("*", False),), (self.name("proj_none", False),),
                         # A connection of a pool, after somebody's transaction; also one that was broken off.
                         ("begin", self.name(self.a.project, True), "commit"), ("begin", self.name(self.a.project, True), "rollback")):
            with self.subTest(settings):
                self.assertEqual({table: n for table, n in self.seen(*settings).items() if n}, {})

    def test_s47_the_role_of_requests_sees_one_project_s_rows(self):
        files = dict(self.target.rows("select project_id, count(*) from files group by project_id"))
        for tenant in (self.a, self.b, self.c):
            self.assertEqual(self.seen(self.name(tenant.project, False))["files"], int(files[tenant.project]))
        foreign = f"update files set filename = 'stolen' where project_id = '{self.b.project}'"
        gift = f"update files set project_id = '{self.b.project}' where project_id = '{self.a.project}'"
        for attack, allowed in ((foreign, True), (gift, False), ("update files set project_id = project_id where false", True)):
            done = self.psql(f"set role {ROLE}", "begin", self.name(self.a.project, True), attack, "rollback")
            if allowed:
                self.assertIn("UPDATE 0", done.stdout, done)
            else:
                self.assertIn("row-level security", done.stderr, done)

    def test_s47_the_role_of_requests_has_no_way_around(self):
        for what, sql in (
                ("rights", f"select rolname from pg_roles where rolname = '{ROLE}' and (rolsuper or rolbypassrls or rolcanlogin or rolcreaterole)"),
                ("ownership", f"select relname from pg_class where relowner = '{ROLE}'::regrole"),
                ("other roles", f"select roleid::regrole from pg_auth_members where member = '{ROLE}'::regrole"),
                ("functions of the owner", "select proname from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"),
                ("secrets", f"select relname from pg_class where relname in ('admin_api_keys', 'outbox', 'organizations', 'audit_log') "
                            f"and relnamespace = 'public'::regnamespace and has_table_privilege('{ROLE}', oid, 'select')")):
            self.assertEqual(self.target.rows(sql), [], what)

    def test_s48_every_table_with_rows_of_projects_is_behind_the_wall(self):
        n, = self.target.rows(f"select count(*) from ({OF_PROJECTS}) t")[0]
        self.assertGreaterEqual(int(n), 32)
        open_tables = self.target.rows(f"""select c.relname from pg_class c where c.oid in ({OF_PROJECTS}) and not (
            c.relrowsecurity and c.relforcerowsecurity and exists (select 1 from pg_policy p where p.polrelid = c.oid and p.polcmd = '*'
                and p.polqual is not null and p.polwithcheck is not null))""")
        self.assertEqual(open_tables, [])
        self.assertEqual(self.target.rows("select polrelid::regclass from pg_policy where polcmd <> 'r' and polwithcheck is null"), [])
        # What requests may read is behind it, whosever rows it holds.
        self.assertEqual(self.target.rows(f"""select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
            and not relrowsecurity and has_table_privilege('{ROLE}', oid, 'select')"""), [])


@in_both_forms
class Places:
    def test_s47_the_file_is_its_owner_s(self):
        """What no policy guards, the operating system does: nobody else reads the database or what lies beside it."""
        if not self.target.is_embedded:
            self.skipTest("the rows are PostgreSQL's, which has roles")
        folder = self.target.service.data_dir
        self.assertTrue(list(folder.glob("luthier.db*")))
        self.assertEqual(folder.stat().st_mode & 0o077, 0, "others may enter the folder")
