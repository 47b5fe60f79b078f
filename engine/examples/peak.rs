//! What one thread of this processor multiplies at most: `cargo run --release -p engine --example peak` times loops of nothing but
//! multiply-adds on registers, of tiles and pairs of bf16 and of f32, and prints GFLOP/s. No matrix product can be faster.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(target_arch = "x86_64")]
    x86::print();
    #[cfg(not(target_arch = "x86_64"))]
    println!("not measured: the loops are written for x86-64");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::time::Instant;

    use engine::Isa;

    /// Independent sums: enough to hide the latency of one instruction.
    const SUMS: u64 = 12;
    const TILE_SUMS: u64 = 4;
    const ROUNDS: u64 = 40_000_000;
    /// One instruction on tiles is as much work as many others.
    const TILE_ROUNDS: u64 = 20;
    const TRIES: u32 = 5;

    /// A loop of twelve instructions on the registers 0 to 11.
    macro_rules! multiply_adds {
        ($name:ident, $instruction:literal, $register:literal) => {
            fn $name() {
                // SAFETY: the caller has looked for the instructions; registers alone change.
                unsafe {
                    asm!(
                        "2:",
                        concat!($instruction, " ", $register, "0, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "1, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "2, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "3, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "4, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "5, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "6, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "7, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "8, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "9, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "10, ", $register, "14, ", $register, "15"),
                        concat!($instruction, " ", $register, "11, ", $register, "14, ", $register, "15"),
                        "dec {rounds}",
                        "jnz 2b",
                        rounds = inout(reg) ROUNDS => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
                        out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm14") _, out("xmm15") _,
                        options(nomem, nostack),
                    );
                }
            }
        };
    }
    multiply_adds!(bf16_avx512, "vdpbf16ps", "zmm");
    multiply_adds!(f32_avx512, "vfmadd231ps", "zmm");
    multiply_adds!(f32_avx2, "vfmadd231ps", "ymm");

    /// A loop of four instructions on tiles of sixteen rows of 64 bytes.
    fn bf16_amx() {
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for register in 0..8 {
            shapes.0[16 + 2 * register] = 64;
            shapes.0[48 + register] = 16;
        }
        // SAFETY: the caller has looked for the instructions; registers alone change, and are given back.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                shapes = in(reg) &shapes,
                rounds = inout(reg) ROUNDS / TILE_ROUNDS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[repr(align(64))]
    struct Shapes([u8; 64]);

    pub fn print() {
        let bf16 = is_x86_feature_detected!("avx512bf16");
        let (avx512, fma) = (
            is_x86_feature_detected!("avx512f"),
            is_x86_feature_detected!("fma"),
        );
        let tiles = Isa::detect() == Isa::Amx;
        let tile_flop = TILE_SUMS * 2 * 16 * 16 * 32 / TILE_ROUNDS;
        time("bf16 tiles, AMX", tiles, bf16_amx, tile_flop);
        time("bf16 pairs, AVX-512", bf16, bf16_avx512, 64 * SUMS);
        time("f32, AVX-512", avx512, f32_avx512, 32 * SUMS);
        time("f32, AVX2", fma, f32_avx2, 16 * SUMS);
    }

    /// `flop`: of a round.
    fn time(name: &str, is_there: bool, run: fn(), flop: u64) {
        if !is_there {
            return println!("{name:<20} not on this processor");
        }
        let seconds = (0..TRIES).map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64()
        });
        let best = seconds.fold(f64::INFINITY, f64::min);
        let gflops = (ROUNDS * flop) as f64 / best / 1e9;
        println!("{name:<20} {gflops:7.1} GFLOP/s");
    }
}
