//! How the files of the repository look.

use std::process::Command;

use crate::{expect_none, read, root};

/// Files that people write. Data, fixtures and generated files are not judged.
const WRITTEN: [&str; 14] = [
    "rs", "toml", "md", "py", "sh", "js", "mjs", "ts", "yaml", "yml", "service", "html", "css",
    "txt",
];
/// Above this nobody reads a file that ships. Lines, unit tests at its end included.
const MAX_LINES: usize = 800;

fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root())
        .output()
        .expect("git ls-files");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    names
        .split('\0')
        .filter(|name| !name.is_empty() && root().join(name).is_file())
        .map(str::to_owned)
        .collect()
}

/// Written files, without fixtures.
fn written() -> impl Iterator<Item = (String, String)> {
    let is_written = |name: &String| {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let scripted = !name.contains('.') && name.contains('/');
        (WRITTEN.contains(&extension) || scripted) && !name.contains("fixtures/")
    };
    tracked().into_iter().filter(is_written).filter_map(|name| {
        let content = std::fs::read_to_string(root().join(&name)).ok()?;
        Some((name, content))
    })
}

fn rust_sources() -> impl Iterator<Item = (String, String)> {
    written().filter(|(name, _)| name.ends_with(".rs"))
}

/// The lines before the unit tests, with their numbers.
fn shipped_lines(content: &str) -> impl Iterator<Item = (usize, &str)> {
    content
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .zip(1..)
        .map(|(l, n)| (n, l))
}

#[test]
fn every_module_says_what_it_owns() {
    let findings = rust_sources()
        .filter(|(name, _)| !name.ends_with("/tests.rs")) // the module above says it
        .filter(|(_, content)| {
            let first = content.lines().next().unwrap_or_default();
            let text = first.strip_prefix("//! ").unwrap_or_default();
            text.trim().len() < 10
        })
        .map(|(name, _)| name)
        .collect();
    expect_none(
        findings,
        "these files do not begin with `//!` and a sentence:",
    );
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // In halves, or this file would name them.
    let paths = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"]].map(|halves| halves.concat());
    find_in_lines(&paths, "these lines name a path of one machine:");
}

#[test]
fn nothing_is_left_for_later_in_the_code() {
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|halves| halves.concat());
    find_in_lines(
        &marks,
        "these lines promise work; do it, or write the plan in docs/:",
    );
}

fn find_in_lines(words: &[String], rule: &str) {
    let mut findings = Vec::new();
    for (name, content) in written() {
        for (line, n) in content.lines().zip(1..) {
            if words.iter().any(|word| line.contains(word.as_str())) {
                findings.push(format!("{name}:{n}: {}", line.trim()));
            }
        }
    }
    expect_none(findings, rule);
}

#[test]
fn code_that_ships_does_not_unwrap() {
    let mut findings = Vec::new();
    for (name, content) in rust_sources() {
        let ships = name.contains("/src/") && !name.starts_with("tests/");
        if !ships || name.ends_with("/tests.rs") || name.contains("/tests/") {
            continue;
        }
        for (n, line) in shipped_lines(&content) {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(".unwrap()") || code.contains("panic!(") {
                findings.push(format!("{name}:{n}: {}", line.trim()));
            }
        }
    }
    expect_none(
        findings,
        "use `expect(\"… — a bug in …\")` with the proof, or return an error:",
    );
}

#[test]
fn files_are_short_enough_to_read() {
    let mut lengths: Vec<(usize, String)> = rust_sources()
        .map(|(name, content)| (content.lines().count(), name))
        .collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let n = lengths.len();
    println!(
        "{n} Rust files; half of them have at most {} lines; the longest:",
        lengths[n / 2].0
    );
    for (lines, name) in lengths.iter().take(12) {
        println!("{lines:6} {name}");
    }
    let findings = lengths
        .iter()
        .filter(|(lines, name)| *lines > MAX_LINES && name.contains("/src/"))
        .map(|(lines, name)| format!("{name}: {lines} lines"))
        .collect();
    expect_none(findings, "split these by what they own:");
}

#[test]
fn the_architecture_names_every_room() {
    let page = read("ARCHITECTURE.md");
    let manifest: toml::Table = read("Cargo.toml").parse().expect("Cargo.toml is TOML");
    let findings = manifest["workspace"]["members"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|member| member.as_str().expect("a path").to_owned())
        .filter(|member| !page.contains(&format!("`{member}/`")))
        .collect();
    expect_none(findings, "ARCHITECTURE.md does not say what these are:");
}

#[test]
fn the_architecture_names_files_that_exist() {
    let page = read("ARCHITECTURE.md");
    // Between backticks, with a slash and an extension: a path. `{a,b}` and `{n}` stand for several.
    let is_path = |word: &&str| {
        let last = word.rsplit('/').next().unwrap_or_default();
        word.contains('/') && last.contains('.') && !word.contains(['{', ' ', ':'])
    };
    let paths: Vec<&str> = page.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(paths.len() > 10, "{paths:?}");
    let missing = paths.iter().filter(|path| !root().join(path).exists());
    expect_none(
        missing.map(|path| path.to_string()).collect(),
        "these files do not exist:",
    );
}
