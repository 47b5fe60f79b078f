//! How fast rows are read, without tokenizing them: `cargo run --release --example bench_rows [MB]` prints MB/s of one core.

use std::io::Cursor;
use std::time::Instant;

use text::dataset::DatasetReader;
use text::formats::RowFormat;

/// A conversation as people train on: half a kilobyte to some kilobytes, with escapes and letters beyond ASCII.
fn row(i: usize) -> String {
    let words = "Grüße aus \\\"Köln\\\", the ticket is closed;\\nnothing is left to do. ";
    let turn = |role: &str, n: usize| {
        let content = words.repeat(n);
        format!(r#"{{"role":"{role}","content":"{i}: {content}"}}"#)
    };
    let turns = [
        turn("system", 2),
        turn("user", 1 + i % 17),
        turn("assistant", 1 + i % 5),
    ];
    format!(r#"{{"messages":[{}]}}"#, turns.join(",")) + "\n"
}

fn main() {
    let megabytes = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let n_bytes = megabytes.unwrap_or(200_usize) * 1_000_000;
    let mut file = String::with_capacity(n_bytes + 10_000);
    for i in 0.. {
        if file.len() >= n_bytes {
            break;
        }
        file.push_str(&row(i));
    }
    let started = Instant::now();
    let (mut n_rows, mut fingerprints) = (0_u64, 0_u64);
    for row in DatasetReader::new(Cursor::new(&file), RowFormat::Chat) {
        let row = row
            .expect("memory is read")
            .expect("the row is good — a bug in bench_rows");
        n_rows += 1;
        fingerprints ^= row.fingerprint;
    }
    let seconds = started.elapsed().as_secs_f64();
    let speed = file.len() as f64 / 1e6 / seconds;
    println!("{n_rows} rows ({fingerprints:016x}): {speed:.0} MB/s");
}
