//! Gives `luthier --version` the commit it was built from, where the sources are a git checkout.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../.git/HEAD");
    println!("cargo::rerun-if-changed=../.git/logs/HEAD");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=10", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(
            || "unknown commit".to_owned(),
            |text| text.trim().to_owned(),
        );
    println!("cargo::rustc-env=LUTHIER_COMMIT={commit}");
}
