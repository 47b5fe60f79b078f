//! Licences, bans and sources, as `deny.toml` says; on the tree that is really built for this host.

use std::collections::BTreeSet;
use std::process::Command;

use crate::{expect_none, read, root};

/// One crate of the tree.
struct Dependency {
    name: String,
    /// As its manifest has it; empty where there is none.
    licence: String,
}

/// `cargo metadata` also lists what no enabled feature reaches; `cargo tree` does not.
fn tree() -> Vec<Dependency> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}|{l}", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo tree");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: BTreeSet<String> = String::from_utf8(output.stdout)
        .expect("names and licences are UTF-8")
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    let parse = |line: &String| {
        let (package, licence) = line.split_once('|').expect("the format has a bar");
        let name = package
            .split(' ')
            .next()
            .expect("a package has a name")
            .to_owned();
        Dependency {
            name,
            licence: licence.to_owned(),
        }
    };
    let tree: Vec<Dependency> = lines.iter().map(parse).collect();
    assert!(tree.len() > 100, "cargo tree gave {} crates", tree.len());
    tree
}

fn deny() -> toml::Table {
    read("deny.toml").parse().expect("deny.toml is TOML")
}

#[test]
fn every_licence_goes_with_apache_2() {
    let deny = deny();
    let allowed: Vec<&str> = deny["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|licence| licence.as_str().expect("a name"))
        .collect();
    let findings = tree()
        .into_iter()
        .filter(|dependency| !accepts(&dependency.licence, &allowed))
        .map(|dependency| format!("{}: {:?}", dependency.name, dependency.licence))
        .collect();
    expect_none(findings, "deny.toml does not allow these licences:");
    assert!(
        read("LICENSE").contains("Apache License"),
        "LICENSE is the Apache License"
    );
}

#[test]
fn no_banned_crate_is_built() {
    let deny = deny();
    let banned: Vec<&str> = deny["bans"]["deny"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|ban| ban["crate"].as_str().expect("a name"))
        .collect();
    assert!(banned.contains(&"ring"));
    let findings = tree()
        .into_iter()
        .filter(|dependency| banned.contains(&dependency.name.as_str()))
        .map(|dependency| dependency.name)
        .collect();
    expect_none(
        findings,
        "deny.toml bans these crates; `cargo tree -i NAME` says who wants them:",
    );
}

#[test]
fn every_crate_comes_from_the_registry() {
    let lock: toml::Table = read("Cargo.lock").parse().expect("Cargo.lock is TOML");
    let findings = lock["package"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|package| {
            let source = package.get("source")?.as_str()?;
            let registry = "registry+https://github.com/rust-lang/crates.io-index";
            (source != registry).then(|| format!("{}: {source}", package["name"]))
        })
        .collect();
    expect_none(findings, "these crates do not come from crates.io:");
}

/// Whether the SPDX `expression` can be met with `allowed` licences: one side of an `OR`, both of
/// an `AND`, which binds closer. The old `A/B` means `A OR B`.
fn accepts(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut words = words.as_slice();
    either(&mut words, allowed) == Some(true) && words.is_empty()
}

/// `None` here and below: this is no expression.
fn either(words: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut accepted = both(words, allowed)?;
    while let ["OR", rest @ ..] = words {
        *words = rest;
        accepted |= both(words, allowed)?;
    }
    Some(accepted)
}

fn both(words: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut accepted = single(words, allowed)?;
    while let ["AND", rest @ ..] = words {
        *words = rest;
        accepted &= single(words, allowed)?;
    }
    Some(accepted)
}

fn single(words: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    match **words {
        ["(", ref rest @ ..] => {
            *words = rest;
            let accepted = either(words, allowed)?;
            let [")", rest @ ..] = *words else {
                return None;
            };
            *words = rest;
            Some(accepted)
        }
        [name, "WITH", exception, ref rest @ ..] => {
            *words = rest;
            Some(allowed.contains(&format!("{name} WITH {exception}").as_str()))
        }
        [name, ref rest @ ..] => {
            *words = rest;
            Some(allowed.contains(&name))
        }
        [] => None,
    }
}

#[test]
fn licence_expressions_are_read_as_spdx() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "MIT AND ISC",
        "(GPL-3.0 OR ISC) AND MIT",
        "GPL-3.0 OR MIT AND ISC",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
    ] {
        assert!(accepts(good, &allowed), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "MIT OR",
        "(MIT",
        "(MIT OR ISC) AND GPL-3.0",
        "MIT ISC",
    ] {
        assert!(!accepts(bad, &allowed), "{bad}");
    }
}
