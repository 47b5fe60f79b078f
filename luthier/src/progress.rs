//! Progress on the terminal: bars where there is one, a line now and then where there is none.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes.
pub struct Bytewise(ProgressBar);

/// A bar over `total` bytes, or a counter where the total is unknown.
pub fn bytes(label: &str, total: Option<u64>) -> Bytewise {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{msg:<44} {bar:24} {bytes:>11} of {total_bytes} {eta}",
        ),
        None => (ProgressBar::no_length(), "{msg:<44} {bytes:>11}"),
    };
    Bytewise(styled(bar, template, label))
}

impl Bytewise {
    pub fn inc(&self, n: u64) {
        self.0.inc(n);
    }

    pub fn finish_and_clear(&self) {
        self.0.finish_and_clear();
    }

    /// Counts what passes through `stream`.
    pub fn watch<E>(
        &self,
        stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static {
        let bar = self.0.clone();
        stream.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                bar.inc(chunk.len() as u64);
            }
        })
    }
}

/// Something of unknown length is going on.
pub fn spinner(label: &str) -> ProgressBar {
    let bar = styled(
        ProgressBar::new_spinner(),
        "{spinner} {msg} {elapsed}",
        label,
    );
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar over `total` steps whose message tells how it goes.
pub fn steps(total: u64) -> ProgressBar {
    styled(
        ProgressBar::new(total),
        "{bar:32} {pos}/{len} steps  {msg}  {eta} left",
        "",
    )
}

fn styled(bar: ProgressBar, template: &str, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .expect("the template is a constant — a bug in progress");
    bar.with_style(style).with_message(label.to_owned())
}

/// A bar over questions to a model.
pub fn questions(total: u64, model: &str) -> ProgressBar {
    styled(
        ProgressBar::new(total),
        "asking {msg}  {bar:24} {pos}/{len}",
        model,
    )
}
