"""What the program is made of (API9): crates of one registry, each as Cargo.lock has it, and none that deny.toml bans."""

import re
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

from attack import ROOT, service

PART = re.compile(rb"registry/src/([^/\0]+)/([A-Za-z0-9_+.-]+-\d+\.\d+\.\d+[A-Za-z0-9.+-]*)/")
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


class Supply(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.program = Path(service.LUTHIER).read_bytes()
        cls.lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
        cls.deny = tomllib.loads((ROOT / "deny.toml").read_text())

    def test_s119_the_program_is_made_of_what_the_lock_names(self):
        """Every crate leaves the paths of its files in the program, for panics: a list of its parts that nobody wrote."""
        parts = set(PART.findall(self.program))
        self.assertGreater(len(parts), 60)
        self.assertEqual({registry.split(b"-")[0] for registry, _ in parts}, {b"index.crates.io"})
        self.assertNotIn(b"/git/checkouts/", self.program)
        locked = {f"{package['name']}-{package['version']}".encode() for package in self.lock}
        self.assertEqual({part for _, part in parts} - locked, set())
        for package in self.lock:
            if "source" in package:
                self.assertEqual(package["source"], REGISTRY, package["name"])
                self.assertRegex(package["checksum"], "^[0-9a-f]{64}$")

    def test_s119_the_program_has_no_part_that_is_banned(self):
        names = {part.rsplit(b"-", 1)[0].decode() for _, part in PART.findall(self.program)}
        banned = {one["crate"] for one in self.deny["bans"]["deny"]}
        self.assertIn("rustls", names)
        self.assertTrue({"ring", "openssl-sys"} <= banned)
        # RUSTSEC-2023-0071: rsa tells its key by how long it takes; sqlx-mysql would bring it along.
        self.assertEqual(names & {*banned, "rsa", "sqlx-mysql"}, set())

    def test_s119_what_is_banned_or_has_another_licence_is_refused(self):
        tools = sorted(ROOT.glob("target/test-tools/deny-*/bin/cargo-deny"))
        if not tools:
            self.skipTest("cargo-deny is not there: tests/deny installs it")
        for name, licence, checked, is_good in (("good", "MIT", "licenses", True), ("good", "MIT", "bans", True), ("evil", "GPL-3.0-only", "licenses", False),
                                                ("evil", "", "licenses", False), ("ring", "MIT", "bans", False), ("openssl-sys", "MIT", "bans", False)):
            with self.subTest(f"{name} {licence} {checked}"), tempfile.TemporaryDirectory(prefix="luthier-security-") as folder:
                folder = Path(folder)
                for crate, manifest in (("victim", f'license = "MIT"\n[dependencies]\n{name} = {{ path = "../{name}" }}\n'),
                                        (name, f'license = "{licence}"\n' if licence else "")):
                    (folder / crate / "src").mkdir(parents=True)
                    (folder / crate / "src/lib.rs").touch()
                    (folder / crate / "Cargo.toml").write_text(f'[package]\nname = "{crate}"\nversion = "1.0.0"\nedition = "2021"\npublish = false\n{manifest}')
                done = subprocess.run([tools[-1], "--manifest-path", folder / "victim/Cargo.toml", "--offline",
                                       "--config", ROOT / "deny.toml", "check", checked], capture_output=True, text=True, timeout=120)
                self.assertEqual(done.returncode == 0, is_good, done.stderr)
