//! `luthier quickstart`: the main job, done as a client would do it, over HTTP, on real data.

mod client;
mod data;
mod held_out;
mod report;
mod training;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use platform::config::Config;
use platform::shutdown::Shutdown;

use crate::cli::{QuickstartOptions, default_data_dir};
use crate::opened::{make_private_dir, open};
use crate::up::Service;
use crate::{key, logging, model, up};
use client::Client;

/// Seconds each phase took, in the order of the run.
type Phases = BTreeMap<&'static str, f64>;

pub async fn run(options: QuickstartOptions) -> Result<()> {
    let data_dir = options.data_dir.clone().unwrap_or_else(default_data_dir);
    let config = Config::load_embedded(&data_dir, None, &up::listen(options.listen))?;
    make_private_dir(&config.data_dir)?;
    let log = config.data_dir.join("quickstart.log");
    logging::to_file(&config, &log)?;
    let task = data::load(options.data.as_deref())?;
    println!(
        "Luthier quickstart: {} training examples, {} held out.",
        task.train.len(),
        task.held_out.len()
    );
    println!(
        "Everything is kept in {}; the log is {}.",
        config.data_dir.display(),
        log.display()
    );

    let mut phases = Phases::new();
    let base = timed(&mut phases, "model", install_model(&config, &options.model)).await?;
    let shutdown = Shutdown::on_signals()?;
    let service = Service::start(config, None, Some(log), shutdown.clone()).await?;
    let story = tell(&options, &service, &base, &task, &mut phases);
    let outcome = tokio::select! {
        outcome = story => outcome,
        () = shutdown.begun() => Err(anyhow::anyhow!("stopped before the end; `luthier up` goes on where this left off")),
    };
    if outcome.is_err() || options.exit {
        service.stop();
    }
    service.finished().await?;
    outcome
}

/// From the key to the comparison; the service stays up behind it.
async fn tell(
    options: &QuickstartOptions,
    service: &Service,
    base: &str,
    task: &data::Task,
    phases: &mut Phases,
) -> Result<()> {
    let api_key = quickstart_key(service).await?;
    let client = Client::new(service.base_url(), &api_key)?;
    timed(phases, "start", client.wait_until_serving(base)).await?;

    let training = timed(
        phases,
        "train",
        training::run(&client, base, task, options.epochs),
    )
    .await?;
    println!(
        "Trained {} in {:.0} s: {} tokens, {:.0} tokens/s.",
        training.model,
        training.seconds,
        training.trained_tokens,
        training.tokens_per_s()
    );
    let asked = held_out::ask_both(&client, base, &training.model, task);
    let comparison = timed(phases, "ask", asked).await?;
    report::print(task, base, &training.model, &comparison);
    if let Some(path) = &options.json {
        report::write_json(path, &comparison, &training, phases)?;
    }
    if !options.exit {
        report::print_how_to_go_on(&service.base_url(), &api_key, &training.model, task);
    }
    Ok(())
}

async fn install_model(config: &Config, name: &str) -> Result<String> {
    let opened = open(config.clone()).await?;
    if opened.store.base_models().find(name).await?.is_some() {
        return Ok(name.to_owned());
    }
    let model = model::pull(&opened, name)
        .await
        .with_context(|| format!("cannot get the base model {name}"))?;
    println!(
        "Installed {} ({:.0} M parameters).",
        model.name,
        model.n_parameters as f64 / 1e6
    );
    Ok(model.name)
}

/// One key for all runs on this directory, kept beside the installation's other secrets.
async fn quickstart_key(service: &Service) -> Result<String> {
    let path = service
        .opened
        .config
        .data_dir
        .join("secrets/quickstart_key");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text.trim().to_owned());
    }
    let (store, config) = (&service.opened.store, &service.opened.config);
    let made = key::create_default(store, config, "quickstart").await?;
    write_private(&path, &made)?;
    Ok(made)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn timed<T>(
    phases: &mut Phases,
    name: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let start = Instant::now();
    let outcome = work.await;
    phases.insert(name, start.elapsed().as_secs_f64());
    outcome
}
