//! Prints what each kind of quantisation costs, for normally distributed weights: bits, error, and the speed of reading.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use engine::quant::{GgmlType, Kind, Quantized};
use half::bf16;

const ROWS: usize = 1024;
const COLUMNS: usize = 4096;
/// Passes over the matrix of which the fastest counts: other work on the machine only slows.
const PASSES: usize = 20;

/// What candle calls the kinds of blocks, for it can write them all.
const BLOCKS: [(GgmlType, GgmlDType); 10] = [
    (GgmlType::Q2K, GgmlDType::Q2K),
    (GgmlType::Q3K, GgmlDType::Q3K),
    (GgmlType::Q4_0, GgmlDType::Q4_0),
    (GgmlType::Q4_1, GgmlDType::Q4_1),
    (GgmlType::Q4K, GgmlDType::Q4K),
    (GgmlType::Q5_0, GgmlDType::Q5_0),
    (GgmlType::Q5_1, GgmlDType::Q5_1),
    (GgmlType::Q5K, GgmlDType::Q5K),
    (GgmlType::Q6K, GgmlDType::Q6K),
    (GgmlType::Q8_0, GgmlDType::Q8_0),
];

fn main() -> Result<(), Box<dyn Error>> {
    let weights = normal(ROWS * COLUMNS);
    let tensor = Tensor::from_slice(&weights, (ROWS, COLUMNS), &Device::Cpu)?;
    println!("| kind | bits per weight | error | f32 | bf16 |");
    println!("|---|---|---|---|---|");
    for kind in [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8] {
        report(
            &Quantized::quantize(kind, ROWS, COLUMNS, &weights)?,
            &weights,
        );
    }
    for (kind, dtype) in BLOCKS {
        let bytes = QTensor::quantize(&tensor, dtype)?.data()?.to_vec();
        report(&Quantized::from_ggml(kind, ROWS, COLUMNS, bytes)?, &weights);
    }
    Ok(())
}

fn report(matrix: &Quantized, weights: &[f32]) {
    let mut values = vec![0.0; COLUMNS];
    let (mut off, mut whole) = (0.0, 0.0);
    for (row, weights) in weights.chunks_exact(COLUMNS).enumerate() {
        matrix.dequantize(row, 0..COLUMNS, &mut values);
        for (value, weight) in values.iter().zip(weights) {
            off += f64::from(value - weight).powi(2);
            whole += f64::from(*weight).powi(2);
        }
    }
    let mut halves = vec![bf16::ZERO; COLUMNS];
    let f32_s = fastest_s(|row| matrix.dequantize(row, 0..COLUMNS, &mut values));
    let bf16_s = fastest_s(|row| matrix.dequantize_bf16(row, 0..COLUMNS, &mut halves));
    println!(
        "| {} | {:.3} | {:.4} | {:.1} | {:.1} |",
        matrix.kind(),
        matrix.n_bytes() as f64 * 8.0 / weights.len() as f64,
        (off / whole).sqrt(),
        weights.len() as f64 * 4e-9 / f32_s,
        weights.len() as f64 * 2e-9 / bf16_s,
    );
}

fn fastest_s(mut pass: impl FnMut(usize)) -> f64 {
    let times = (0..PASSES).map(|_| {
        let start = Instant::now();
        (0..ROWS).for_each(&mut pass);
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Numbers with mean 0 and deviation 0.02, always the same ones: Box and Muller's method over SplitMix64.
fn normal(n: usize) -> Vec<f32> {
    let uniform = |i: usize| {
        let mut x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 11) as f64 / (1u64 << 53) as f64
    };
    let draw = |i: usize| {
        let radius = (-2.0 * (1.0 - uniform(2 * i)).ln()).sqrt();
        (0.02 * radius * (std::f64::consts::TAU * uniform(2 * i + 1)).cos()) as f32
    };
    (0..n).map(draw).collect()
}
