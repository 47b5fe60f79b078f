//! Owns what a training by preference minimises: a loss of log p of a prompt's better and worse answer, or of one answer that was judged,
//! and how much each counts in its gradient. Knows no model.
//! Sources: the losses as TRL's `dpo_trainer.py`, `kto_trainer.py`, `cpo_trainer.py` and `orpo_trainer.py` compute them (commit f2cd57710, and
//! 1.15.0 for KTO), each named there by its paper; where it averages over a batch's tokens, the mean over the answer's own, as
//! LLaMA-Factory's `train/dpo/trainer.py` does.

/// log p of the two answers of a pair, each the sum over its labels. An answer that was judged alone stands where it belongs, beside 0.
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
    /// How much a good answer counts, for KTO.
    pub desirable_weight: f32,
    /// How much a bad one does.
    pub undesirable_weight: f32,
    /// What KTO reads of a prompt with another row's answer at most, if less than the context. Tokens.
    pub max_length: Option<usize>,
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
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            max_length: None,
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
    /// AOT (arXiv:2406.05882): log-ratios of the answers, sorted over the step, against the reference's, sorted as well.
    Aot,
    /// The better answers' log-ratios to the reference against the worse ones', each sorted over the step.
    AotUnpaired,
    /// KTO (arXiv:2402.01306), over answers that were judged alone.
    Kto,
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

    /// Whether log p of all answers of a step must be known before one is learned from.
    pub(super) fn sorts(self) -> bool {
        matches!(self, PreferenceLoss::Aot | PreferenceLoss::AotUnpaired)
    }
}

/// What is known of a pair, or of an answer that was judged alone, whose other half has no labels.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scores {
    /// Of the better and of the worse answer.
    pub n_labels: [usize; 2],
    /// By the adapter as it is.
    pub now: PairLogprobs,
    /// 0 for losses without a reference.
    pub reference: PairLogprobs,
}

/// What a pair or a judged answer comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub loss: f64,
    /// ∂(the step's loss)/∂log p of the two answers.
    pub slopes: PairLogprobs,
    /// The rewards that the loss implies: β times log p of each answer beside the reference's; the mean over its labels for losses that
    /// go by it.
    pub rewards: PairLogprobs,
    /// The better answer has the higher reward; of a judged one, its reward lies on its side of `z`.
    pub is_right: bool,
}

impl Preference {
    /// Of all rows of a step. `z`: the log-ratio to which KTO compares, 0 for other losses.
    pub fn outcomes(&self, rows: &[Scores], z: f64) -> Vec<Outcome> {
        let leads = self.leads(rows, z);
        let rows = rows.iter().zip(leads);
        rows.map(|(row, lead)| self.outcome(row, lead)).collect()
    }

    /// By how much each answer is on its side of what it is compared with: its pair's other one, what has the same rank, or `z`.
    fn leads(&self, rows: &[Scores], z: f64) -> Vec<[f64; 2]> {
        let all = |of: &dyn Fn(&Scores) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
        let minus =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let chosen = all(&|row| row.now.chosen - row.reference.chosen);
        let rejected = all(&|row| row.now.rejected - row.reference.rejected);
        let [chosen, rejected] = match self.loss {
            PreferenceLoss::Aot => {
                let now = all(&|row| row.now.chosen - row.now.rejected);
                let reference = all(&|row| row.reference.chosen - row.reference.rejected);
                let lead = minus(&now, &of_same_rank(&now, &reference));
                [lead.clone(), lead]
            }
            PreferenceLoss::AotUnpaired => [
                minus(&chosen, &of_same_rank(&chosen, &rejected)),
                minus(&of_same_rank(&rejected, &chosen), &rejected),
            ],
            PreferenceLoss::Kto => {
                let z = vec![z; rows.len()];
                [minus(&chosen, &z), minus(&z, &rejected)]
            }
            _ => {
                let lead = minus(&chosen, &rejected);
                [lead.clone(), lead]
            }
        };
        chosen
            .into_iter()
            .zip(rejected)
            .map(<[f64; 2]>::from)
            .collect()
    }

    /// Of a pair whose answers lead by `lead`.
    fn outcome(&self, row: &Scores, lead: [f64; 2]) -> Outcome {
        use PreferenceLoss as Loss;
        let (beta, smoothing) = (f64::from(self.beta), f64::from(self.label_smoothing));
        let &Scores {
            n_labels,
            now,
            reference,
        } = row;
        let [has_w, has_l] = n_labels.map(|n| if n > 0 { 1.0 } else { 0.0 });
        let [n_w, n_l] = n_labels.map(|n| n.max(1) as f64);
        // Chosen and rejected, each beside the reference; then their means over labels.
        let (w, l) = (
            now.chosen - reference.chosen,
            now.rejected - reference.rejected,
        );
        let (mean_w, mean_l) = (w / n_w, l / n_l);
        let [x, x_l] = lead.map(|lead| beta * lead);
        let (loss, d_w, d_l) = match self.loss {
            Loss::Sigmoid | Loss::Aot | Loss::AotUnpaired => {
                let loss = -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x);
                let d = |x| beta * (smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x));
                (loss, d(x), -d(x_l))
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
            Loss::Kto => {
                let good = has_w * f64::from(self.desirable_weight);
                let bad = has_l * f64::from(self.undesirable_weight);
                let loss = good * sigmoid(-x) + bad * sigmoid(-x_l);
                (loss, -good * beta * slope(x), bad * beta * slope(x_l))
            }
        };
        // What `ftx` adds knows no reference.
        let ftx = f64::from(self.ftx);
        let (reward_w, reward_l) = match self.loss {
            Loss::Orpo | Loss::Simpo => (mean_w, mean_l),
            _ => (w, l),
        };
        Outcome {
            is_right: match self.loss {
                Loss::Kto => has_w * x + has_l * x_l > 0.0,
                _ => reward_w > reward_l,
            },
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

/// For each of `own`, the one of `others` that has its rank; equal ones stand in their order.
fn of_same_rank(own: &[f64], others: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..own.len()).collect();
    order.sort_by(|&a, &b| own[a].total_cmp(&own[b]));
    let mut sorted = others.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mut found = vec![0.0; own.len()];
    for (place, other) in order.into_iter().zip(sorted) {
        found[place] = other;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSES: [PreferenceLoss; 16] = [
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
        PreferenceLoss::Aot,
        PreferenceLoss::AotUnpaired,
        PreferenceLoss::Kto,
        PreferenceLoss::Orpo,
        PreferenceLoss::Simpo,
        PreferenceLoss::Cpo,
    ];

    fn pair(chosen: f64, rejected: f64) -> PairLogprobs {
        PairLogprobs { chosen, rejected }
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        let values = [
            (-3.0, -9.5, -4.0, -8.0),
            (-20.0, -2.0, -12.0, -3.5),
            (-0.4, -90.0, -1.0, -60.0),
        ];
        for loss in LOSSES {
            let preference = Preference {
                loss,
                beta: 0.3,
                label_smoothing: 0.1,
                ftx: if loss == PreferenceLoss::Kto {
                    0.0
                } else {
                    0.2
                },
                desirable_weight: 0.75,
                undesirable_weight: 1.5,
                ..Preference::default()
            };
            let step = values.map(|(chosen, rejected, ref_chosen, ref_rejected)| Scores {
                n_labels: [4, 7],
                now: pair(chosen, rejected),
                reference: match loss.has_reference() {
                    true => pair(ref_chosen, ref_rejected),
                    false => PairLogprobs::default(),
                },
            });
            let total = |step: &[Scores]| -> f64 {
                let outcomes = preference.outcomes(step, 0.7);
                outcomes.iter().map(|outcome| outcome.loss).sum()
            };
            for (row, outcome) in preference.outcomes(&step, 0.7).iter().enumerate() {
                let (slopes, h) = (outcome.slopes, 1e-5);
                for (found, moved) in [
                    (slopes.chosen, pair(h, 0.0)),
                    (slopes.rejected, pair(0.0, h)),
                ] {
                    let at = |sign: f64| {
                        let mut step = step;
                        step[row].now.chosen += sign * moved.chosen;
                        step[row].now.rejected += sign * moved.rejected;
                        total(&step)
                    };
                    let expected = (at(1.0) - at(-1.0)) / (2.0 * h);
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
                let scores = Scores {
                    n_labels: [10, 10],
                    now: pair(chosen, rejected),
                    reference: PairLogprobs::default(),
                };
                let found = preference.outcomes(&[scores], 0.0)[0];
                let PairLogprobs { chosen, rejected } = found.slopes;
                let all = [found.loss, chosen, rejected];
                assert!(all.iter().all(|x| x.is_finite()), "{loss:?}: {found:?}");
            }
        }
    }

    #[test]
    fn kto_moves_an_answer_to_its_side_of_z() {
        let preference = Preference {
            loss: PreferenceLoss::Kto,
            beta: 0.5,
            undesirable_weight: 2.0,
            ..Preference::default()
        };
        let half = |n_labels, now| Scores {
            n_labels,
            now,
            reference: PairLogprobs::default(),
        };
        let rows = [
            half([3, 0], pair(1.0, 0.0)),
            half([0, 3], pair(0.0, 1.0)),
            half([0, 3], pair(0.0, 4.0)),
        ];
        let found = preference.outcomes(&rows, 2.0);
        let right: Vec<bool> = found.iter().map(|outcome| outcome.is_right).collect();
        assert_eq!(right, [false, true, false]);
        // 1 − σ(½(1 − 2)), and twice 1 − σ(½(2 − 1)).
        assert!((found[0].loss - sigmoid(0.5)).abs() < 1e-12);
        assert!((found[1].loss - 2.0 * sigmoid(-0.5)).abs() < 1e-12);
        assert!(found[0].slopes.chosen < 0.0 && found[1].slopes.rejected > 0.0);
        assert_eq!(
            (found[0].slopes.rejected, found[1].slopes.chosen),
            (0.0, 0.0)
        );
        assert_eq!(found[1].rewards, pair(0.0, 0.5));
    }

    #[test]
    fn ranks_meet_and_equal_ones_stand_in_their_order() {
        assert_eq!(
            of_same_rank(&[5.0, 1.0, 3.0], &[0.3, 0.1, 0.2]),
            [0.3, 0.1, 0.2]
        );
        assert_eq!(
            of_same_rank(&[1.0, 1.0, 0.0], &[7.0, 8.0, 9.0]),
            [8.0, 9.0, 7.0]
        );
    }
}
