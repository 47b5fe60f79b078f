//! The Hugging Face hub: which files of a repository make a model, and getting them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::progress;

/// Files of a repository that a model folder needs besides its safetensors.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "LICENSE",
];

#[derive(Deserialize)]
struct Repository {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Downloads the model files of `repository` into `folder`, all from one commit. `HF_ENDPOINT` and `HF_TOKEN` are
/// honoured. Errors: the hub is out of reach, refuses, or holds no safetensors there.
pub async fn fetch(repository: &str, folder: &Path) -> Result<()> {
    let endpoint =
        std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    let endpoint = endpoint.trim_end_matches('/');
    let client = client()?;
    let listing = format!("{endpoint}/api/models/{repository}");
    let reply = client
        .get(&listing)
        .send()
        .await
        .with_context(|| format!("cannot reach {endpoint}"))?;
    if !reply.status().is_success() {
        bail!(
            "{listing} answered {}; for a gated model set HF_TOKEN",
            reply.status()
        );
    }
    let listed: Repository = reply
        .json()
        .await
        .with_context(|| format!("{listing} is no repository listing"))?;
    let wanted = wanted_files(&listed);
    if !wanted.iter().any(|name| name.ends_with(".safetensors")) {
        bail!("{repository} holds no .safetensors at its top level, so it cannot be loaded");
    }
    std::fs::create_dir_all(folder)?;
    for name in wanted {
        let url = format!("{endpoint}/{repository}/resolve/{}/{name}", listed.sha);
        download(&client, &url, &folder.join(name), name).await?;
    }
    Ok(())
}

fn wanted_files(listed: &Repository) -> Vec<&str> {
    let at_top = listed
        .siblings
        .iter()
        .map(|s| s.rfilename.as_str())
        .filter(|name| !name.contains(['/', '\\']));
    at_top
        .filter(|name| SMALL_FILES.contains(name) || name.ends_with(".safetensors"))
        .collect()
}

fn client() -> Result<reqwest::Client> {
    let mut headers = reqwest::header::HeaderMap::new();
    if let Ok(token) = std::env::var("HF_TOKEN") {
        let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {token}"))
            .context("HF_TOKEN cannot stand in a header")?;
        value.set_sensitive(true);
        headers.insert(reqwest::header::AUTHORIZATION, value);
    }
    reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(60))
        .build()
        .context("cannot make an HTTP client")
}

/// Streams `url` into `dest`, with a bar. The file appears complete or not at all.
pub async fn download(client: &reqwest::Client, url: &str, dest: &Path, label: &str) -> Result<()> {
    use futures::StreamExt;
    use tokio::io::AsyncWriteExt;

    let reply = client.get(url).send().await?.error_for_status()?;
    let expected = reply.content_length();
    let bar = progress::bytes(label, expected);
    let partial = dest.with_extension("partial");
    let mut file = tokio::fs::File::create(&partial).await?;
    let mut stream = reply.bytes_stream();
    let mut got = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.with_context(|| format!("the download of {label} broke off"))?;
        file.write_all(&chunk).await?;
        got += chunk.len() as u64;
        bar.inc(chunk.len() as u64);
    }
    file.sync_all().await?;
    if let Some(expected) = expected.filter(|expected| *expected != got) {
        bail!("the download of {label} ended after {got} of {expected} bytes");
    }
    tokio::fs::rename(&partial, dest).await?;
    bar.finish_and_clear();
    Ok(())
}
