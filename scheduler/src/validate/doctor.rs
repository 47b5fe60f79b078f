//! What a job does not ask of a file and whoever made the file wants to know: repeated rows, and what is learned of it.
//! Memory is bounded: rows are remembered by their hashes.

use std::collections::HashMap;

use domain::dry_run::{Answer, BadRow, FileReport, Labels, Lengths, Repeat, Repeats};
use text::check::{Found, See, Seen};
use text::formats::{LineError, NumberedExample, TrainingExample};

/// Different rows that are remembered: some 150 MB of hashes.
const MAX_ROWS: usize = 4 << 20;
/// Repeats that are named one by one; the rest is counted.
const MAX_REPEATS: usize = 100;
/// More different answers than this are no classes.
const MAX_ANSWERS: usize = 50;
/// A longer answer is no class. Bytes.
const MAX_ANSWER_BYTES: usize = 200;

/// Looks at the rows of one file.
pub(super) struct Doctor {
    rows: Rows,
    duplicates: Repeats,
    n_labels: u64,
    /// Rows by the power of two that their number of labels fits under.
    lengths: [u64; 64],
    /// `None`: they are too many, or too long.
    answers: Option<HashMap<String, u64>>,
    /// The rows of the training file, while a validation file is read, and what of them was met again.
    other: Option<(Rows, Repeats)>,
}

impl Doctor {
    pub fn new() -> Self {
        Self {
            rows: Rows::default(),
            duplicates: complete(),
            n_labels: 0,
            lengths: [0; 64],
            answers: Some(HashMap::new()),
            other: None,
        }
    }

    /// For a validation file: also looks for rows of the training file.
    pub fn beside(training: Rows) -> Self {
        let is_complete = !training.is_full();
        let leaked = Repeats {
            is_complete,
            ..complete()
        };
        Self {
            other: Some((training, leaked)),
            ..Self::new()
        }
    }

    /// What of the training file was met.
    pub fn leaked(&self) -> Option<Repeats> {
        self.other.as_ref().map(|(_, leaked)| leaked.clone())
    }

    /// The file's report, and its rows.
    pub fn report(self, found: &Found) -> (FileReport, Rows) {
        let bad_rows = found.report.errors.iter().map(bad_row).collect();
        let lengths = self.lengths.iter().zip(0..);
        let lengths = lengths.filter(|(n_rows, _)| **n_rows > 0);
        let lengths = lengths.map(|(n_rows, power)| Lengths {
            at_most: 1 << power,
            n_rows: *n_rows,
        });
        let report = FileReport {
            n_rows: found.n_rows,
            n_examples: found.report.n_examples,
            n_tokens: found.n_tokens,
            longest: found.longest,
            longest_together: found.longest_together,
            n_desirable: found.n_desirable,
            n_bad_rows: found.report.n_errors,
            bad_rows,
            n_cut: found.n_cut,
            n_split: found.n_split,
            n_dropped: found.n_dropped,
            duplicates: self.duplicates,
            labels: Labels {
                n_tokens: self.n_labels,
                lengths: lengths.collect(),
                answers: self.answers.and_then(classes),
            },
        };
        (report, self.rows)
    }

    fn count_answer(&mut self, row: &NumberedExample) {
        let Some(answers) = &mut self.answers else {
            return;
        };
        match last_answer(&row.example) {
            Some(text) if answers.contains_key(text) => {
                *answers.get_mut(text).expect("it is a key") += 1;
            }
            Some(text) if answers.len() < MAX_ANSWERS && text.len() <= MAX_ANSWER_BYTES => {
                answers.insert(text.to_owned(), 1);
            }
            _ => self.answers = None,
        }
    }
}

impl See for Doctor {
    fn see(&mut self, seen: Seen) {
        if let Some(first_line) = self.rows.first_line(seen.row) {
            note(&mut self.duplicates, seen.row.line, first_line);
        }
        self.duplicates.is_complete = !self.rows.is_full();
        if let Some((training, leaked)) = &mut self.other
            && let Some(first_line) = training.find(seen.row)
        {
            note(leaked, seen.row.line, first_line);
        }
        self.n_labels += seen.n_labels;
        self.lengths[power_above(seen.n_labels)] += 1;
        self.count_answer(seen.row);
    }
}

/// The lines where different rows stood first, by the rows' hashes.
#[derive(Default)]
pub(super) struct Rows(HashMap<u64, u64>);

impl Rows {
    /// Where the row stood before; else it is remembered.
    fn first_line(&mut self, row: &NumberedExample) -> Option<u64> {
        let found = self.find(row);
        if found.is_none() && !self.is_full() {
            self.0.insert(row.fingerprint, row.line);
        }
        found
    }

    fn find(&self, row: &NumberedExample) -> Option<u64> {
        self.0.get(&row.fingerprint).copied()
    }

    fn is_full(&self) -> bool {
        self.0.len() >= MAX_ROWS
    }
}

fn complete() -> Repeats {
    Repeats {
        is_complete: true,
        ..Repeats::default()
    }
}

fn note(repeats: &mut Repeats, line: u64, first_line: u64) {
    repeats.n_rows += 1;
    if repeats.rows.len() < MAX_REPEATS {
        repeats.rows.push(Repeat { line, first_line });
    }
}

/// The exponent of the smallest power of two that is not below `n`.
fn power_above(n: u64) -> usize {
    n.max(1).next_power_of_two().trailing_zeros() as usize
}

/// What the model is to say at the end of the row, where that is text.
fn last_answer(example: &TrainingExample) -> Option<&str> {
    match example {
        TrainingExample::Chat(chat) => {
            let last = chat.trained.iter().rposition(|trained| *trained)?;
            chat.messages[last].content.as_deref()
        }
        TrainingExample::Unpaired(unpaired) => unpaired.chat.messages.last()?.content.as_deref(),
        TrainingExample::Preference(pair) => pair.preferred.content.as_deref(),
        TrainingExample::Completion { completion, .. } => Some(completion),
        TrainingExample::Reinforcement(_) => None,
    }
}

/// The answers as classes, where on average each stands twice at least.
fn classes(answers: HashMap<String, u64>) -> Option<Vec<Answer>> {
    let n_rows: u64 = answers.values().sum();
    if n_rows < 2 * answers.len() as u64 {
        return None;
    }
    let answers = answers.into_iter();
    let mut classes: Vec<Answer> = answers
        .map(|(text, n_rows)| Answer { text, n_rows })
        .collect();
    classes.sort_by(|a, b| b.n_rows.cmp(&a.n_rows).then_with(|| a.text.cmp(&b.text)));
    Some(classes)
}

fn bad_row(error: &LineError) -> BadRow {
    BadRow {
        line: error.line,
        byte_offset: error.byte_offset,
        pointer: error.pointer.clone(),
        reason: error.reason.clone(),
        suggested_fix: error.kind.suggested_fix(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fall_under_the_next_power_of_two() {
        for (n, at_most) in [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)] {
            assert_eq!(1 << power_above(n), at_most, "{n}");
        }
    }

    #[test]
    fn answers_are_classes_only_where_they_repeat() {
        let classes = |counts: &[(&str, u64)]| {
            let pairs = counts.iter().map(|(text, n)| ((*text).to_owned(), *n));
            let classes = super::classes(pairs.collect())?.into_iter();
            Some(classes.map(|c| (c.text, c.n_rows)).collect::<Vec<_>>())
        };
        assert_eq!(classes(&[("no", 1), ("yes", 3), ("maybe", 1)]), None);
        let expected = [("yes", 4), ("maybe", 1), ("no", 1)].map(|(t, n)| (t.to_owned(), n));
        assert_eq!(
            classes(&[("no", 1), ("yes", 4), ("maybe", 1)]),
            Some(expected.to_vec())
        );
    }
}
