//! The first signal asks for the end.

use std::process::Command;
use std::time::Duration;

use platform::shutdown::Shutdown;

#[tokio::test]
async fn a_first_sigterm_begins_the_end_and_no_more() {
    let shutdown = Shutdown::on_signals().unwrap();
    assert!(!shutdown.has_begun());
    let me = std::process::id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &me])
            .status()
            .unwrap()
            .success()
    );
    tokio::time::timeout(Duration::from_secs(30), shutdown.begun())
        .await
        .unwrap();
    assert!(shutdown.token().is_cancelled());
}
