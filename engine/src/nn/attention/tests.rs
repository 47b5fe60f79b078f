//! Windows and caps, held to the formula in f64 over documents longer than a block of queries, where keys are skipped.

use super::*;

const HEADS: Heads = Heads {
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 6,
    scores: Scores {
        scale: 0.7,
        cap: None,
        window: usize::MAX,
    },
};

/// Numbers in ±1 that look random.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// q or k or v of a row, widened.
fn part(qkv: &[f64], row: usize, column: usize) -> &[f64] {
    &qkv[row * HEADS.qkv_size() + column..][..HEADS.head_dim]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The sum over all rows of out·d_out, by the formula.
fn objective(scores: Scores, documents: &[Range<usize>], qkv: &[f64], d_out: &[f32]) -> f64 {
    let mut total = 0.0;
    for document in documents {
        for (row, head) in document
            .clone()
            .flat_map(|row| (0..4).map(move |head| (row, head)))
        {
            let (kv, column) = (head / HEADS.group(), head * HEADS.head_dim);
            let first = (row + 1).saturating_sub(scores.window).max(document.start);
            let score = |key| {
                let q = part(qkv, row, column);
                let s = dot(q, part(qkv, key, HEADS.key_column(kv))) * f64::from(scores.scale);
                scores
                    .cap
                    .map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
            };
            let weights: Vec<f64> = (first..=row).map(|key| score(key).exp()).collect();
            let d: Vec<f64> = d_out[row * HEADS.query_size() + column..][..HEADS.head_dim]
                .iter()
                .map(|&d| f64::from(d))
                .collect();
            let values = (first..=row).map(|key| dot(part(qkv, key, HEADS.value_column(kv)), &d));
            let sum: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum();
            total += sum / weights.iter().sum::<f64>();
        }
    }
    total
}

#[test]
fn windows_and_caps_follow_the_formula_forward_and_backward() {
    let pool = Pool::new(2);
    let documents = [0..150, 150..153, 153..230];
    let n_rows = 230;
    let qkv: Vec<f32> = numbers(n_rows * HEADS.qkv_size(), 1);
    let d_out = numbers(n_rows * HEADS.query_size(), 2);
    for (window, cap) in [
        (usize::MAX, Some(0.5)),
        (1, None),
        (20, None),
        (70, Some(0.8)),
    ] {
        let scores = Scores {
            cap,
            window,
            ..HEADS.scores
        };
        let heads = Heads { scores, ..HEADS };
        let mut out = vec![0.0; n_rows * HEADS.query_size()];
        let mut lse = vec![0.0; n_rows * HEADS.n_heads];
        let mut packed = PackedKeyValues::default();
        forward(
            &pool,
            heads,
            &documents,
            &qkv,
            &mut packed,
            &mut out,
            &mut lse,
        )
        .unwrap();
        let widened: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        let got: f64 = out.iter().zip(&d_out).map(|(o, d)| f64::from(o * d)).sum();
        let expected = objective(scores, &documents, &widened, &d_out);
        // 1e-3: 5520 terms, each good to 1e-6 or so.
        assert!(
            (got - expected).abs() < 1e-3,
            "{window} {cap:?}: {got} {expected}"
        );

        let saved = Saved {
            qkv: &qkv,
            attended: &out,
            lse: &lse,
        };
        let mut d_qkv = vec![0.0; qkv.len()];
        let scratch = &mut BackwardScratch::default();
        backward(&pool, heads, &documents, saved, &d_out, scratch, &mut d_qkv).unwrap();
        // Differences along every 97th coordinate, which meet q, k and v of all documents.
        for i in (0..qkv.len()).step_by(97) {
            let mut moved = widened.clone();
            let mut at = |x: f64| {
                moved[i] = widened[i] + x;
                objective(scores, &documents, &moved, &d_out)
            };
            let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
            let got = f64::from(d_qkv[i]);
            let off = (got - expected).abs();
            assert!(off < 2e-5, "{window} {cap:?} {i}: {got} {expected}");
        }
    }
}
