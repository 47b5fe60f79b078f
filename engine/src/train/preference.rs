//! Owns what a training by preference minimises: of a prompt with a better and a worse answer, a loss of log p of both answers, and how
//! much each counts in its gradient. Knows no model.
//! Sources: the losses as TRL's `dpo_trainer.py`, `cpo_trainer.py` and `orpo_trainer.py` compute them (commit f2cd57710), each named there
//! by its paper; where it averages over a batch's tokens, the mean over the answer's own, as LLaMA-Factory's `train/dpo/trainer.py` does.

use super::{TrainConfig, TrainError};
use crate::batch::Example;
use crate::model::Batch;

/// A prompt with two answers, the labels of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub chosen: Example,
    pub rejected: Example,
}

/// log p of the two answers of a pair, each the sum over its labels.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairLogprobs {
    pub chosen: f64,
    pub rejected: f64,
}

/// What a preference is learned by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    pub loss: PreferenceLoss,
    /// How much a nat of log p counts.
    pub beta: f32,
    /// Part of the pairs that are taken to be the wrong way round, below ½.
    pub label_smoothing: f32,
    /// By how much the better answer should be ahead, for SimPO.
    pub gamma: f32,
    /// How much the mean of −log p over the better answer's labels counts beside the loss.
    pub ftx: f32,
}

impl Default for Preference {
    /// DPO as OpenAI, TRL and LLaMA-Factory have it.
    fn default() -> Self {
        Self {
            loss: PreferenceLoss::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            gamma: 0.5,
            ftx: 0.0,
        }
    }
}

/// The names of TRL's `loss_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreferenceLoss {
    /// DPO (arXiv:2305.18290), with `label_smoothing` conservative DPO.
    Sigmoid,
    /// Robust DPO (arXiv:2403.00409).
    Robust,
    /// SLiC (arXiv:2305.10425).
    Hinge,
    /// IPO (arXiv:2310.12036).
    Ipo,
    /// EXO (arXiv:2402.00856); needs `label_smoothing`.
    ExoPair,
    /// NCA (arXiv:2402.05369).
    NcaPair,
    /// BCO (arXiv:2404.04656), without its running mean of rewards.
    BcoPair,
    /// SPPO (arXiv:2405.00675).
    SppoHard,
    /// APO (arXiv:2408.06266).
    ApoZero,
    ApoDown,
    /// ORPO (arXiv:2403.07691), without a reference.
    Orpo,
    /// SimPO (arXiv:2405.14734), without a reference.
    Simpo,
    /// CPO (arXiv:2401.08417), without a reference; its −log p has the weight 1.
    Cpo,
}

impl PreferenceLoss {
    /// Whether it compares with what the model said before the training.
    pub fn has_reference(self) -> bool {
        !matches!(
            self,
            PreferenceLoss::Orpo | PreferenceLoss::Simpo | PreferenceLoss::Cpo
        )
    }
}

/// What one pair comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairOutcome {
    pub loss: f64,
    /// ∂loss/∂log p of the two answers.
    pub slopes: PairLogprobs,
    /// The rewards that the loss implies: β times log p of each answer beside the reference's; the mean over its labels for losses that
    /// go by it.
    pub rewards: PairLogprobs,
}

impl Preference {
    /// Of a pair with `n_labels` (of the better and of the worse answer), log p by the adapter and by the reference, which is 0 for losses
    /// without one.
    pub fn outcome(
        &self,
        n_labels: [usize; 2],
        now: PairLogprobs,
        reference: PairLogprobs,
    ) -> PairOutcome {
        use PreferenceLoss as Loss;
        let (beta, smoothing) = (f64::from(self.beta), f64::from(self.label_smoothing));
        let [n_w, n_l] = n_labels.map(|n| n as f64);
        // Chosen and rejected, each beside the reference; then their means over labels.
        let (w, l) = (
            now.chosen - reference.chosen,
            now.rejected - reference.rejected,
        );
        let (mean_w, mean_l) = (w / n_w, l / n_l);
        let x = beta * (w - l);
        let (loss, d_w, d_l) = match self.loss {
            Loss::Sigmoid => {
                let loss = -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x);
                let d = beta * (smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x));
                (loss, d, -d)
            }
            Loss::Robust => {
                let scale = 1.0 - 2.0 * smoothing;
                let loss = -(1.0 - smoothing) * log_sigmoid(x) + smoothing * log_sigmoid(-x);
                let d = -beta * ((1.0 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x));
                (loss / scale, d / scale, -d / scale)
            }
            Loss::Hinge => {
                let d = if x < 1.0 { -beta } else { 0.0 };
                ((1.0 - x).max(0.0), d, -d)
            }
            Loss::Ipo => {
                let off = mean_w - mean_l - 1.0 / (2.0 * beta);
                (off * off, 2.0 * off / n_w, -2.0 * off / n_l)
            }
            Loss::ExoPair => {
                let ahead = log_sigmoid(x) - (1.0 - smoothing).ln();
                let behind = log_sigmoid(-x) - smoothing.ln();
                let loss = sigmoid(x) * ahead + sigmoid(-x) * behind;
                let d = beta * slope(x) * (ahead - behind);
                (loss, d, -d)
            }
            Loss::NcaPair => {
                let loss = -log_sigmoid(beta * w)
                    - 0.5 * log_sigmoid(-beta * w)
                    - 0.5 * log_sigmoid(-beta * l);
                let d_w = beta * (0.5 * sigmoid(beta * w) - sigmoid(-beta * w));
                (loss, d_w, 0.5 * beta * sigmoid(beta * l))
            }
            Loss::BcoPair => (
                -log_sigmoid(beta * w) - log_sigmoid(-beta * l),
                -beta * sigmoid(-beta * w),
                beta * sigmoid(beta * l),
            ),
            Loss::SppoHard => {
                let (off_w, off_l) = (w - 0.5 / beta, l + 0.5 / beta);
                (off_w * off_w + off_l * off_l, 2.0 * off_w, 2.0 * off_l)
            }
            Loss::ApoZero => (
                sigmoid(-beta * w) + sigmoid(beta * l),
                -beta * slope(beta * w),
                beta * slope(beta * l),
            ),
            Loss::ApoDown => (
                sigmoid(beta * w) + sigmoid(-x),
                beta * (slope(beta * w) - slope(x)),
                beta * slope(x),
            ),
            Loss::Orpo => {
                let [(odds_w, d_odds_w), (odds_l, d_odds_l)] = [mean_w, mean_l].map(log_odds);
                let ratio = odds_w - odds_l;
                let pull = beta * sigmoid(-ratio);
                let loss = -mean_w - beta * log_sigmoid(ratio);
                (loss, (-1.0 - pull * d_odds_w) / n_w, pull * d_odds_l / n_l)
            }
            Loss::Simpo => {
                let ahead = beta * (mean_w - mean_l) - f64::from(self.gamma);
                let pull = beta * sigmoid(-ahead);
                (-log_sigmoid(ahead), -pull / n_w, pull / n_l)
            }
            Loss::Cpo => {
                let pull = beta * sigmoid(-x);
                (-log_sigmoid(x) - mean_w, -pull - 1.0 / n_w, pull)
            }
        };
        // What `ftx` adds knows no reference.
        let ftx = f64::from(self.ftx);
        let (reward_w, reward_l) = match self.loss {
            Loss::Orpo | Loss::Simpo => (mean_w, mean_l),
            _ => (w, l),
        };
        PairOutcome {
            loss: loss - ftx * now.chosen / n_w,
            slopes: PairLogprobs {
                chosen: d_w - ftx / n_w,
                rejected: d_l,
            },
            rewards: PairLogprobs {
                chosen: beta * reward_w,
                rejected: beta * reward_l,
            },
        }
    }
}

/// σ(x)
fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// log σ(x), exact far from 0, too.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ′(x)
fn slope(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

/// log(p/(1 − p)) of a log p, and its slope 1/(1 − p). A certain answer counts as nearly certain.
fn log_odds(log_p: f64) -> (f64, f64) {
    let log_p = log_p.min(-1e-9);
    let log_rest = if log_p < -std::f64::consts::LN_2 {
        (-log_p.exp()).ln_1p()
    } else {
        (-log_p.exp_m1()).ln()
    };
    (log_p - log_rest, (-log_rest).exp())
}

/// Sums over pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairReport {
    pub loss_sum: f64,
    pub n_pairs: u64,
    /// Pairs whose better answer has the higher reward.
    pub n_right: u64,
    pub reward_sums: PairLogprobs,
}

impl PairReport {
    fn add(&mut self, outcome: &PairOutcome) {
        let PairLogprobs { chosen, rejected } = outcome.rewards;
        self.loss_sum += outcome.loss;
        self.n_pairs += 1;
        self.n_right += u64::from(chosen > rejected);
        self.reward_sums.chosen += chosen;
        self.reward_sums.rejected += rejected;
    }
}

/// What one step over pairs did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairStepReport {
    /// 1-based.
    pub step: u64,
    /// Before the update.
    pub pairs: PairReport,
    /// All tokens of the batch, those of a prompt for each of its answers.
    pub n_tokens: u64,
    /// Before clipping.
    pub grad_norm: f32,
    pub learning_rate: f32,
}

/// The pairs of a step, and what the passes over them say.
pub(super) struct Pairs<'a> {
    preference: Preference,
    /// Of each pair.
    references: &'a [PairLogprobs],
    report: PairReport,
}

impl<'a> Pairs<'a> {
    pub fn new(
        config: &TrainConfig,
        n_pairs: usize,
        references: &'a [PairLogprobs],
    ) -> Result<Self, TrainError> {
        let bad = |what: &str| Err(TrainError::BadInput(what.to_owned()));
        let Some(preference) = config.preference else {
            return bad("the training has no preference");
        };
        if preference.loss.has_reference() && references.len() != n_pairs {
            return bad("each pair needs what the reference says of it");
        }
        Ok(Self {
            preference,
            references,
            report: PairReport::default(),
        })
    }

    pub fn report(&self) -> PairReport {
        self.report
    }

    /// Takes in a pass over whole pairs, (better, worse) answer after answer, whose labels have `logprobs`; the outcome of each pair with the
    /// labels of its two answers.
    fn outcomes(&mut self, pass: &Batch, logprobs: &[f32]) -> Vec<(PairOutcome, [usize; 2])> {
        let answers = answers(pass, logprobs);
        let pairs = answers.chunks_exact(2).zip(pass.members.chunks_exact(2));
        let outcomes = pairs.map(|(answers, members)| {
            let n_labels = [answers[0].1, answers[1].1];
            let now = PairLogprobs {
                chosen: answers[0].0,
                rejected: answers[1].0,
            };
            let reference = match self.preference.loss.has_reference() {
                true => self.references[members[0] / 2],
                false => PairLogprobs::default(),
            };
            let outcome = self.preference.outcome(n_labels, now, reference);
            (outcome, n_labels)
        });
        let outcomes: Vec<_> = outcomes.collect();
        outcomes
            .iter()
            .for_each(|(outcome, _)| self.report.add(outcome));
        outcomes
    }

    pub fn score(&mut self, pass: &Batch, logprobs: &[f32]) {
        self.outcomes(pass, logprobs);
    }

    /// As [`Self::score`]; how much −log p of each label counts in the gradient of the mean loss over `n_pairs`.
    pub fn weigh(&mut self, n_pairs: usize, pass: &Batch, logprobs: &[f32]) -> Vec<f32> {
        let outcomes = self.outcomes(pass, logprobs).into_iter();
        outcomes
            .flat_map(|(PairOutcome { slopes, .. }, [n_chosen, n_rejected])| {
                let factor = |slope: f64| (-slope / n_pairs as f64) as f32;
                let chosen = std::iter::repeat_n(factor(slopes.chosen), n_chosen);
                chosen.chain(std::iter::repeat_n(factor(slopes.rejected), n_rejected))
            })
            .collect()
    }
}

/// log p of each document of a pass, and its number of labels.
pub(super) fn answers(pass: &Batch, logprobs: &[f32]) -> Vec<(f64, usize)> {
    let mut first = 0;
    let documents = pass.documents.iter();
    documents
        .map(|document| {
            let n = pass.label_rows[first..].partition_point(|&row| row < document.end);
            let own = &logprobs[first..first + n];
            first += n;
            (own.iter().map(|&x| f64::from(x)).sum(), n)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSES: [PreferenceLoss; 13] = [
        PreferenceLoss::Sigmoid,
        PreferenceLoss::Robust,
        PreferenceLoss::Hinge,
        PreferenceLoss::Ipo,
        PreferenceLoss::ExoPair,
        PreferenceLoss::NcaPair,
        PreferenceLoss::BcoPair,
        PreferenceLoss::SppoHard,
        PreferenceLoss::ApoZero,
        PreferenceLoss::ApoDown,
        PreferenceLoss::Orpo,
        PreferenceLoss::Simpo,
        PreferenceLoss::Cpo,
    ];

    #[test]
    fn slopes_are_those_of_the_loss() {
        let values = [
            (-3.0, -9.5, -4.0, -8.0),
            (-20.0, -2.0, -12.0, -3.5),
            (-0.4, -90.0, -1.0, -60.0),
        ];
        for loss in LOSSES {
            for (chosen, rejected, ref_chosen, ref_rejected) in values {
                let preference = Preference {
                    loss,
                    beta: 0.3,
                    label_smoothing: 0.1,
                    ftx: 0.2,
                    ..Preference::default()
                };
                let reference = match loss.has_reference() {
                    true => PairLogprobs {
                        chosen: ref_chosen,
                        rejected: ref_rejected,
                    },
                    false => PairLogprobs::default(),
                };
                let at = |chosen, rejected| {
                    let now = PairLogprobs { chosen, rejected };
                    preference.outcome([4, 7], now, reference)
                };
                let (found, h) = (at(chosen, rejected).slopes, 1e-5);
                let d_chosen = at(chosen + h, rejected).loss - at(chosen - h, rejected).loss;
                let d_rejected = at(chosen, rejected + h).loss - at(chosen, rejected - h).loss;
                for (found, expected) in [
                    (found.chosen, d_chosen / (2.0 * h)),
                    (found.rejected, d_rejected / (2.0 * h)),
                ] {
                    let off = (found - expected).abs();
                    assert!(
                        off < 1e-7 * (1.0 + expected.abs()),
                        "{loss:?}: {found} and {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_far_from_even_stays_finite() {
        for loss in LOSSES {
            for (chosen, rejected) in [(0.0, -1e5), (-1e5, 0.0), (-1e5, -1e5)] {
                let preference = Preference {
                    loss,
                    label_smoothing: 0.01,
                    ..Preference::default()
                };
                let now = PairLogprobs { chosen, rejected };
                let found = preference.outcome([10, 10], now, PairLogprobs::default());
                let PairLogprobs { chosen, rejected } = found.slopes;
                let all = [found.loss, chosen, rejected];
                assert!(all.iter().all(|x| x.is_finite()), "{loss:?}: {found:?}");
            }
        }
    }

    #[test]
    fn answers_are_added_up_by_document() {
        let pass = Batch {
            documents: vec![0..3, 3..5],
            label_rows: vec![1, 2, 4],
            ..Batch::default()
        };
        assert_eq!(answers(&pass, &[-1.0, -2.0, -4.0]), [(-3.0, 2), (-4.0, 1)]);
    }
}
