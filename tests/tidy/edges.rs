//! Dependencies point down: the edges that ARCHITECTURE.md draws, and no others.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::{expect_none, read, root};

/// Each room, and the rooms that it may import.
const EDGES: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("engine", &[]),
    ("migrations", &[]),
    ("text", &["domain"]),
    ("platform", &["domain"]),
    ("store", &["domain", "migrations"]),
    ("api", &["domain", "store", "platform"]),
    ("scheduler", &["domain", "store", "platform", "text"]),
    ("gpu-worker", &["domain", "platform", "text", "engine"]),
    (
        "luthier",
        &[
            "domain",
            "store",
            "platform",
            "text",
            "engine",
            "api",
            "scheduler",
            "gpu-worker",
            "migrations",
        ],
    ),
    ("tests", &[]),
];

/// Crates that belong to a few rooms: a prefix of their names, and these rooms.
const OWNED: [(&str, &[&str]); 10] = [
    ("sea-orm", &["store", "migrations"]),
    ("sqlx", &["store"]),
    ("aws-", &["platform"]),
    ("lapin", &["platform"]),
    ("poem", &["api", "scheduler", "gpu-worker", "luthier"]),
    ("candle", &["engine", "text", "luthier"]),
    // One renderer and one tokenizer for validation, training and serving.
    ("tokenizers", &["text"]),
    ("minijinja", &["text"]),
    ("llguidance", &["text"]),
    // The pure rooms do no input and output, so they have no use for async.
    (
        "tokio",
        &[
            "platform",
            "store",
            "api",
            "scheduler",
            "gpu-worker",
            "luthier",
            "tests",
        ],
    ),
];

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).no_deps();
    command
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo metadata")
}

#[test]
fn rooms_import_only_what_lies_below_them() {
    let edges = BTreeMap::from(EDGES);
    let mut findings = Vec::new();
    for room in metadata().packages {
        let name = room.name.as_str();
        let Some(allowed) = edges.get(name) else {
            findings.push(format!("{name} is not in the list: draw its edges first"));
            continue;
        };
        for dependency in room
            .dependencies
            .iter()
            .filter(|d| edges.contains_key(d.name.as_str()))
        {
            // What is only for tests may use the harness, which imports no room. The harness'
            // own tests run the whole house.
            let for_tests = dependency.kind == DependencyKind::Development
                && (dependency.name == "tests" || name == "tests");
            if !for_tests && !allowed.contains(&dependency.name.as_str()) {
                findings.push(format!("{name} -> {}", dependency.name));
            }
        }
    }
    expect_none(findings, "these imports go up or sideways:");
}

#[test]
fn crates_stay_in_the_rooms_that_own_them() {
    let mut findings = Vec::new();
    for room in metadata().packages {
        for dependency in &room.dependencies {
            let owned = OWNED
                .iter()
                .find(|(prefix, _)| dependency.name.starts_with(prefix));
            let shipped = dependency.kind != DependencyKind::Development;
            if let Some((_, owners)) = owned
                && shipped
                && !owners.contains(&room.name.as_str())
            {
                findings.push(format!("{} uses {}", room.name, dependency.name));
            }
        }
    }
    expect_none(findings, "these crates belong to other rooms:");
}

#[test]
fn every_version_is_pinned_in_one_place() {
    let mut findings = Vec::new();
    for (room, _) in EDGES {
        let manifest: toml::Table = read(format!("{room}/Cargo.toml")).parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|value| value.as_table())
            else {
                continue;
            };
            for (name, value) in dependencies {
                if value.get("workspace").and_then(|value| value.as_bool()) != Some(true) {
                    findings.push(format!("{room}/Cargo.toml: {name}"));
                }
            }
        }
    }
    expect_none(
        findings,
        "write these as `{ workspace = true }`, the version in the root:",
    );
}
