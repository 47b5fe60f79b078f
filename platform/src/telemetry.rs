//! What is seen from outside: log lines on standard error, metrics as Prometheus text.

use std::io;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// From a cached read to a long generation. Seconds.
const BUCKETS_S: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level {level:?} is not understood: {reason}")]
    BadLevel { level: String, reason: String },

    #[error("logging or metrics are already set up in this process")]
    AlreadySet,

    #[error("no thread for the metrics: {0}")]
    NoThread(io::Error),
}

/// Sends log lines to standard error, as `config` says. Once per process.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let subscriber = subscriber(config, io::stderr)?;
    subscriber
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)
}

/// The subscriber of [`init`] on a writer of choice, for tests over captured lines.
pub fn subscriber<W>(
    config: &LogConfig,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.level).map_err(|error| TelemetryError::BadLevel {
        level: config.level.clone(),
        reason: error.to_string(),
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    Ok(match config.format {
        LogFormat::Text => Box::new(registry.with(lines)),
        LogFormat::Json => Box::new(registry.with(lines.json().flatten_event(true))),
    })
}

/// The metrics of this process; everything recorded with the `metrics` macros.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Starts to record. Once per process, for as long as it lives.
    pub fn install() -> Result<Self, TelemetryError> {
        let builder = PrometheusBuilder::new()
            .set_buckets(&BUCKETS_S)
            .expect("the buckets are not empty — a bug in telemetry");
        let handle = builder
            .install_recorder()
            .map_err(|_| TelemetryError::AlreadySet)?;
        let kept = handle.clone();
        // Histograms keep every sample until they are counted into their buckets, and nobody may ever ask for them.
        let keep_up = move || {
            loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                kept.run_upkeep();
            }
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned());
        thread.spawn(keep_up).map_err(TelemetryError::NoThread)?;
        Ok(Self { handle })
    }

    /// The current values, in Prometheus' text format.
    pub fn render(&self) -> String {
        // What was recorded since the last upkeep counts, too.
        self.handle.run_upkeep();
        self.handle.render()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(level: &str, format: LogFormat) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = LogConfig {
            level: level.to_owned(),
            format,
        };
        let subscriber = subscriber(&config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(job = "ftjob-1", "began");
            tracing::debug!("detail");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn level_and_format_are_obeyed() {
        let text = lines_of("info", LogFormat::Text);
        assert!(
            text.contains("began job=\"ftjob-1\"") && !text.contains("detail"),
            "{text}"
        );
        assert!(lines_of("debug", LogFormat::Text).contains("detail"));
        assert_eq!(lines_of("error", LogFormat::Text), "");

        let line: serde_json::Value =
            serde_json::from_str(&lines_of("info", LogFormat::Json)).unwrap();
        assert_eq!(
            (&line["message"], &line["job"]),
            (&"began".into(), &"ftjob-1".into())
        );
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        let config = LogConfig {
            level: "info,=".to_owned(),
            format: LogFormat::Text,
        };
        let refused = subscriber(&config, io::sink).err().unwrap();
        assert!(
            matches!(refused, TelemetryError::BadLevel { .. }),
            "{refused}"
        );
    }

    #[test]
    fn metrics_are_rendered_with_buckets() {
        let metrics = Metrics::install().unwrap();
        metrics::counter!("luthier_test_total").increment(2);
        metrics::histogram!("luthier_test_seconds").record(0.03);
        let text = metrics.render();
        assert!(text.contains("luthier_test_total 2"), "{text}");
        assert!(
            text.contains("luthier_test_seconds_bucket{le=\"0.05\"} 1"),
            "{text}"
        );
        assert!(matches!(
            Metrics::install(),
            Err(TelemetryError::AlreadySet)
        ));
    }
}
