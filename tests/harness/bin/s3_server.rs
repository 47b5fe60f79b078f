//! The test S3 server as a process of its own, for runs of several processes:
//! `s3_server --listen 127.0.0.1:0 --root DIR [--bucket NAME]...`. It prints the line
//! `ENDPOINT ACCESS_KEY_ID SECRET_ACCESS_KEY` once it serves.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use tests::s3::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Directory of the stored objects; created where absent.
    #[arg(long)]
    root: PathBuf,
    /// Buckets to create.
    #[arg(long, default_value = "luthier")]
    bucket: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    for bucket in &arguments.bucket {
        std::fs::create_dir_all(arguments.root.join(bucket))?;
    }
    tests::s3::run(arguments.listen, &arguments.root, |address| {
        println!("http://{address} {ACCESS_KEY_ID} {SECRET_ACCESS_KEY}");
    })
    .await
}
