//! What an attempt trains on: conversations, or answers to compare with what the reference says of them.

use engine::batch::Example;
use engine::train::{Compared, Judged};

use crate::device::{ComparedBatch, DeviceError, Training};

/// The rows of a dataset, as its format has them.
pub(super) enum Rows {
    Conversations(Vec<Example>),
    Compared(Answers),
}

/// Pairs or judged answers, and log p of each answer by the adapter that the job began with, once it was asked for: it is the same in
/// every epoch.
pub(super) struct Answers {
    rows: Compared,
    references: Vec<Option<f64>>,
}

impl From<Compared> for Answers {
    fn from(rows: Compared) -> Self {
        let references = vec![None; rows.len() * rows.n_together()];
        Self { rows, references }
    }
}

impl Answers {
    /// The rows at `places`, ready to be trained or scored on.
    pub async fn choose(
        &mut self,
        training: &Training,
        has_reference: bool,
        places: &[usize],
    ) -> Result<ComparedBatch, DeviceError> {
        let rows = self.rows.at(places);
        if !has_reference {
            let references = Vec::new();
            return Ok(ComparedBatch { rows, references });
        }
        let n = self.rows.n_together();
        let places_of_answers = |row: usize| row * n..(row + 1) * n;
        let unknown = places.iter().copied();
        let unknown = unknown.filter(|row| self.references[places_of_answers(*row)][0].is_none());
        let unknown: Vec<usize> = unknown.collect();
        if !unknown.is_empty() {
            let told = training.reference_logprobs(self.rows.at(&unknown)).await?;
            let answers = unknown.into_iter().flat_map(places_of_answers);
            for (place, logprob) in answers.zip(told) {
                self.references[place] = Some(logprob);
            }
        }
        let answers = places.iter().copied().flat_map(places_of_answers);
        let references = answers.filter_map(|place| self.references[place]).collect();
        Ok(ComparedBatch { rows, references })
    }

    /// Tokens of the longest row at `places`.
    pub fn longest(&self, places: &[usize]) -> usize {
        longest(&self.rows.at(places))
    }
}

impl Rows {
    /// No validation file was given.
    pub fn none() -> Self {
        Rows::Conversations(Vec::new())
    }

    pub fn len(&self) -> usize {
        match self {
            Rows::Conversations(examples) => examples.len(),
            Rows::Compared(Answers { rows, .. }) => rows.len(),
        }
    }

    /// Tokens of what shares a pass at most: a conversation, both answers of a pair, or a prompt with another row's answer, of which
    /// `max_length` are read.
    pub fn longest(&self, max_length: usize) -> usize {
        match self {
            Rows::Conversations(examples) => {
                let lengths = examples.iter().map(|example| example.tokens.len());
                lengths.max().unwrap_or(0)
            }
            Rows::Compared(Answers { rows, .. }) => match rows {
                Compared::Pairs(_) => longest(rows),
                Compared::Judged(judged) => {
                    let most = |of: fn(&Judged) -> usize| judged.iter().map(of).max().unwrap_or(0);
                    let joined = most(Judged::n_prompt) + most(Judged::n_answer);
                    longest(rows).max(joined.min(max_length))
                }
            },
        }
    }

    pub fn n_tokens(&self) -> u64 {
        let n: usize = match self {
            Rows::Conversations(examples) => examples.iter().map(|e| e.tokens.len()).sum(),
            Rows::Compared(Answers { rows, .. }) => {
                rows.answers().iter().map(|e| e.tokens.len()).sum()
            }
        };
        n as u64
    }

    /// What the tuned model is to say: the conversations, the better answers, or the good ones where there are any.
    pub fn wanted(&self) -> Vec<&Example> {
        let Answers { rows, .. } = match self {
            Rows::Conversations(examples) => return examples.iter().collect(),
            Rows::Compared(answers) => answers,
        };
        match rows {
            Compared::Pairs(pairs) => pairs.iter().map(|pair| &pair.chosen).collect(),
            Compared::Judged(judged) => {
                let good = judged.iter().filter(|row| row.is_desirable);
                let good: Vec<&Example> = good.map(|row| &row.answer).collect();
                match good.is_empty() {
                    true => rows.answers(),
                    false => good,
                }
            }
        }
    }
}

/// Tokens of the longest row.
fn longest(rows: &Compared) -> usize {
    let answers = rows.answers();
    let rows = answers.chunks(rows.n_together());
    let length = |answers: &[&Example]| answers.iter().map(|a| a.tokens.len()).sum::<usize>();
    rows.map(length).max().unwrap_or(0)
}
