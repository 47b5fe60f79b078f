//! Holds the codecs to what bitsandbytes and gguf compute (`tests/fixtures/quant`), and to candle for GGML's blocks.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::dynamic::MAP;
use super::nf4::Scales;
use super::*;

/// The tensors of a fixture.
struct Fixture(Vec<u8>);

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant");
        Self(std::fs::read(folder.join(name)).unwrap())
    }

    fn shape(&self, name: &str) -> [usize; 2] {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap().shape().try_into().unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap().data().to_vec()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().map(|&x| f32::from_le_bytes(x)).collect()
    }

    fn bf16(&self, name: &str) -> Vec<bf16> {
        let bytes = self.bytes(name);
        let (values, _) = bytes.as_chunks::<2>();
        values.iter().map(|&x| bf16::from_le_bytes(x)).collect()
    }

    /// A matrix in f32 or bf16, quantised.
    fn quantize(&self, kind: Kind, name: &str) -> Quantized {
        let [rows, columns] = self.shape(name);
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        match tensors.tensor(name).unwrap().dtype() {
            Dtype::BF16 => Quantized::quantize(kind, rows, columns, &self.bf16(name)),
            _ => Quantized::quantize(kind, rows, columns, &self.f32(name)),
        }
        .unwrap()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn dequantized(matrix: &Quantized) -> Vec<f32> {
    let mut values = vec![f32::NAN; matrix.rows * matrix.columns];
    for (row, out) in values.chunks_exact_mut(matrix.columns).enumerate() {
        matrix.dequantize(row, 0..matrix.columns, out);
    }
    values
}

fn nf4(matrix: &Quantized) -> &Nf4 {
    match &matrix.data {
        Data::Nf4(nf4) => nf4,
        _ => panic!("not NF4"),
    }
}

fn check_nested(matrix: &Quantized, fixture: &Fixture, name: &str) {
    let Scales::Double {
        differences,
        offset,
    } = &nf4(matrix).scales
    else {
        panic!("{name}: the scales are not quantised")
    };
    let expected = |part: &str| fixture.f32(&format!("{name}.nested_{part}"));
    assert_eq!(bits(&[*offset]), bits(&expected("offset")), "{name}");
    assert_eq!(
        differences.codes,
        fixture.bytes(&format!("{name}.nested_codes")),
        "{name}"
    );
    assert_eq!(
        bits(&differences.absmax),
        bits(&expected("absmax")),
        "{name}"
    );
}

#[test]
fn nf4_is_byte_for_byte_that_of_bitsandbytes() {
    let fixture = Fixture::read("nf4.safetensors");
    assert_eq!(bits(&MAP), bits(&fixture.f32("map")));
    for name in ["ragged", "odd", "bf16"] {
        let of = |part: &str| format!("{name}.{part}");
        let plain = fixture.quantize(Kind::Nf4, &of("weight"));
        assert_eq!(nf4(&plain).codes, fixture.bytes(&of("codes")), "{name}");
        let Scales::Plain(scales) = &nf4(&plain).scales else {
            panic!("{name}: the scales are quantised")
        };
        assert_eq!(bits(scales), bits(&fixture.f32(&of("absmax"))), "{name}");
        let double = fixture.quantize(Kind::Nf4DoubleQuant, &of("weight"));
        check_nested(&double, &fixture, name);
        if name != "bf16" {
            for (matrix, part) in [(&plain, "values"), (&double, "nested_values")] {
                let expected = fixture.f32(&of(part));
                assert_eq!(bits(&dequantized(matrix)), bits(&expected), "{name}");
            }
        }
    }
}

#[test]
fn nf4_gives_bf16_values_as_bitsandbytes_rounds_them() {
    let fixture = Fixture::read("nf4.safetensors");
    let cases = [
        (Kind::Nf4, "values"),
        (Kind::Nf4DoubleQuant, "nested_values"),
    ];
    for (kind, part) in cases {
        let matrix = fixture.quantize(kind, "bf16.weight");
        let mut values = vec![bf16::NAN; matrix.rows * matrix.columns];
        for (row, out) in values.chunks_exact_mut(matrix.columns).enumerate() {
            matrix.dequantize_bf16(row, 0..matrix.columns, out);
        }
        assert_eq!(values, fixture.bf16(&format!("bf16.{part}")), "{kind}");
    }
}

/// Numbers in [−1, 1) by the formula of `tests/parity/engine_fixtures.py`.
fn hash_uniform(seed: u32, n: u32) -> Vec<f32> {
    let mixed = |i: u32| {
        let mut x = i.wrapping_add(seed.wrapping_mul(0x9e37_79b9));
        x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
        x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
        ((x ^ x >> 16) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(mixed).collect()
}

#[test]
fn means_are_those_of_pytorch_to_the_last_bit() {
    let values = hash_uniform(9, 140_000);
    let lengths = [1, 5, 7, 8, 37, 100, 1000, 9375, 20_000, 140_000];
    let means = lengths.map(|n| dynamic::mean(&values[..n]));
    let expected = Fixture::read("nf4.safetensors").f32("means");
    assert_eq!(bits(&means), bits(&expected));
}

#[test]
fn the_scales_of_large_and_of_even_matrices_are_those_of_bitsandbytes() {
    let scales = hash_uniform(8, 600_000 / 64);
    let mut weights = hash_uniform(7, 600_000);
    for (block, scale) in weights.chunks_mut(64).zip(scales) {
        block.iter_mut().for_each(|weight| *weight *= scale);
    }
    let fixture = Fixture::read("nf4.safetensors");
    let flat = [0.25; 640];
    for (name, rows, weights) in [("many", 600, &weights[..]), ("flat", 10, &flat)] {
        let columns = weights.len() / rows;
        let matrix = Quantized::quantize(Kind::Nf4DoubleQuant, rows, columns, weights).unwrap();
        check_nested(&matrix, &fixture, name);
    }
}

#[test]
fn int8_is_byte_for_byte_that_of_bitsandbytes() {
    let fixture = Fixture::read("int8.safetensors");
    for name in ["f32", "bf16"] {
        let matrix = fixture.quantize(Kind::Int8, &format!("{name}.weight"));
        let Data::Int8(int8) = &matrix.data else {
            panic!("{name}: not int8")
        };
        let codes: &[u8] = bytemuck::cast_slice(&int8.codes);
        assert_eq!(codes, fixture.bytes(&format!("{name}.CB")), "{name}");
        let of = |part: &str| fixture.f32(&format!("{name}.{part}"));
        assert_eq!(bits(&int8.scales), bits(&of("SCB")), "{name}");
        assert_eq!(bits(&dequantized(&matrix)), bits(&of("values")), "{name}");
    }
}

#[test]
fn fp8_is_byte_for_byte_what_pytorch_rounds_to() {
    let fixture = Fixture::read("fp8.safetensors");
    for name in ["f32", "bf16", "every"] {
        let matrix = fixture.quantize(Kind::Fp8, &format!("{name}.weight"));
        let Data::Fp8(fp8) = &matrix.data else {
            panic!("{name}: not fp8")
        };
        assert_eq!(fp8.codes, fixture.bytes(&format!("{name}.codes")), "{name}");
        let of = |part: &str| fixture.f32(&format!("{name}.{part}"));
        assert_eq!(bits(&fp8.scales), bits(&of("scales")), "{name}");
        assert_eq!(bits(&dequantized(&matrix)), bits(&of("values")), "{name}");
    }
}

#[test]
fn ggml_blocks_have_the_values_that_gguf_reads() {
    let fixture = Fixture::read("ggml.safetensors");
    for kind in GgmlType::ALL {
        let name = kind.to_string().to_uppercase();
        let [rows, columns] = fixture.shape(&format!("{name}.values"));
        let bytes = fixture.bytes(&format!("{name}.blocks"));
        let matrix = Quantized::from_ggml(kind, rows, columns, bytes).unwrap();
        let expected = fixture.f32(&format!("{name}.values"));
        assert_eq!(bits(&dequantized(&matrix)), bits(&expected), "{kind}");
    }
}

#[test]
fn q8_0_and_q4_0_are_byte_for_byte_those_of_gguf() {
    let fixture = Fixture::read("ggml.safetensors");
    for (kind, name) in [(GgmlType::Q8_0, "Q8_0"), (GgmlType::Q4_0, "Q4_0")] {
        let blocks = Blocks::quantize(kind, &fixture.f32("weight")).unwrap();
        assert_eq!(blocks.bytes, fixture.bytes(&format!("{name}.quantized")));
    }
}

#[test]
fn ggml_blocks_have_the_values_that_candle_reads() {
    let dtypes = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    let weights = Tensor::from_vec(hash_uniform(3, 4 * 768), (4, 768), &Device::Cpu).unwrap();
    for (kind, dtype) in GgmlType::ALL.into_iter().zip(dtypes) {
        let theirs = QTensor::quantize(&weights, dtype).unwrap();
        let bytes = theirs.data().unwrap().to_vec();
        let matrix = Quantized::from_ggml(kind, 4, 768, bytes).unwrap();
        let values = theirs.dequantize(&Device::Cpu).unwrap();
        let expected: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(bits(&dequantized(&matrix)), bits(&expected), "{kind}");
    }
}

/// Every kind, with a matrix whose rows the blocks of NF4 do not end with where that can be.
fn every_kind() -> Vec<Quantized> {
    let weights = hash_uniform(5, 3 * 1280);
    let blocks = GgmlType::ALL.map(|kind| {
        // Codes and scales of any bits, but the numbers in f16 without their highest exponent bit, so that they are finite.
        let n_bytes = 3 * 1280 / kind.block_len() * kind.block_bytes();
        let noise = hash_uniform(6, n_bytes as u32);
        let bytes = noise.iter().map(|x| (x.to_bits() >> 9) as u8 & 0xbf);
        Quantized::from_ggml(kind, 3, 1280, bytes.collect()).unwrap()
    });
    let codecs = [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8];
    let codecs = codecs.map(|kind| Quantized::quantize(kind, 5, 701, &weights[..3505]).unwrap());
    codecs.into_iter().chain(blocks).collect()
}

#[test]
fn what_a_matrix_takes_is_known_before() {
    for matrix in every_kind() {
        let (kind, rows, columns) = (matrix.kind(), matrix.rows, matrix.columns);
        assert_eq!(
            Quantized::bytes_of(kind, rows, columns),
            matrix.n_bytes(),
            "{kind}"
        );
    }
}

#[test]
fn a_range_of_a_row_has_the_values_of_the_whole() {
    for matrix in every_kind() {
        let (whole, columns) = (dequantized(&matrix), matrix.columns);
        let ranges = [
            0..columns,
            0..1,
            7..7,
            31..33,
            64..192,
            63..577,
            256..512,
            300..columns,
        ];
        for range in ranges {
            for row in 0..matrix.rows {
                let expected = &whole[row * columns..][range.clone()];
                let mut values = vec![f32::NAN; range.len()];
                matrix.dequantize(row, range.clone(), &mut values);
                assert_eq!(
                    values,
                    expected,
                    "{}, {range:?} of row {row}",
                    matrix.kind()
                );
                let mut rounded = vec![bf16::NAN; range.len()];
                matrix.dequantize_bf16(row, range.clone(), &mut rounded);
                let expected: Vec<bf16> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
                assert_eq!(
                    rounded,
                    expected,
                    "{}, {range:?} of row {row}",
                    matrix.kind()
                );
            }
        }
    }
}

#[test]
fn bf16_rounds_as_half_does_even_what_is_not_a_number() {
    let values: Vec<f32> = [
        0x7fff_ffff,
        0xffff_8000,
        0x7f80_0000,
        0x7f7f_ffff,
        0x3f80_8000,
        0x3f81_8000,
        0x8000_0001,
    ]
    .map(f32::from_bits)
    .to_vec();
    let mut rounded = vec![bf16::ZERO; values.len()];
    round_to_bf16(&values, &mut rounded);
    let rounded: Vec<u16> = rounded.iter().map(|x| x.to_bits()).collect();
    let expected: Vec<u16> = values
        .iter()
        .map(|&x| bf16::from_f32(x).to_bits())
        .collect();
    assert_eq!(rounded, expected);
}

#[test]
fn every_kind_says_what_it_is_and_what_memory_it_takes() {
    let weights = vec![f16::ONE; 256 * 256];
    let bits_per_weight = |kind| {
        let matrix = Quantized::quantize(kind, 256, 256, &weights).unwrap();
        assert_eq!(matrix.kind(), kind);
        assert_eq!((matrix.rows(), matrix.columns()), (256, 256));
        assert!(
            dequantized(&matrix).iter().all(|x| (x - 1.0).abs() < 1e-3),
            "{kind}"
        );
        matrix.n_bytes() as f64 * 8.0 / 65_536.0
    };
    assert_eq!(bits_per_weight(Kind::Nf4), 4.5);
    // 8 bits for each 64 weights, 32 for each 16384, and the offset.
    assert_eq!(
        bits_per_weight(Kind::Nf4DoubleQuant),
        4.125 + 5.0 * 32.0 / 65_536.0
    );
    assert_eq!(bits_per_weight(Kind::Int8), 8.125);
    assert_eq!(bits_per_weight(Kind::Fp8), 8.125);
    // In panels a scale is an f32.
    assert_eq!(bits_per_weight(Kind::Ggml(GgmlType::Q8_0)), 9.0);
    assert_eq!(bits_per_weight(Kind::Ggml(GgmlType::Q4_0)), 5.0);
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let mut weights = vec![0.5f32; 3 * 96];
    let refused = |kind, columns, weights: &[f32]| {
        let error = Quantized::quantize(kind, 3, columns, weights).err();
        error.unwrap().to_string()
    };
    assert_eq!(
        refused(Kind::Int8, 95, &weights),
        "288 weights are not a matrix of 3 rows and 95 columns, which has 285"
    );
    assert_eq!(
        refused(Kind::Ggml(GgmlType::Q8_0), 95, &weights[..285]),
        "q8_0 needs rows of a multiple of 32 weights, not 95; choose another kind"
    );
    let wide = [0.5; 3 * 256];
    assert_eq!(
        refused(Kind::Ggml(GgmlType::Q6K), 256, &wide),
        "q6_k can be read but not written; choose q8_0 or q4_0"
    );
    let error = Quantized::from_ggml(GgmlType::Q4K, 3, 256, vec![0; 431]).err();
    assert_eq!(
        error.unwrap().to_string(),
        "431 bytes are not a matrix of 3 rows and 256 columns, which has 432"
    );
    weights[205] = f32::NEG_INFINITY;
    assert_eq!(
        refused(Kind::Nf4, 96, &weights),
        "weight -inf in row 2, column 13 cannot be quantised"
    );
}
