//! What one thread of this processor multiplies at most: `cargo run --release -p engine --example peak` times loops of nothing but
//! multiply-adds on registers, of bf16 pairs and of f32, and prints GFLOP/s. No matrix product can be faster.

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

    /// Independent sums: enough to hide the latency of one instruction.
    const SUMS: u64 = 12;
    const ROUNDS: u64 = 40_000_000;
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

    pub fn print() {
        let bf16 = is_x86_feature_detected!("avx512bf16");
        let (avx512, fma) = (
            is_x86_feature_detected!("avx512f"),
            is_x86_feature_detected!("fma"),
        );
        time("bf16 pairs, AVX-512", bf16, bf16_avx512, 64);
        time("f32, AVX-512", avx512, f32_avx512, 32);
        time("f32, AVX2", fma, f32_avx2, 16);
    }

    /// `flop`: of one instruction.
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
        let gflops = (ROUNDS * SUMS * flop) as f64 / best / 1e9;
        println!("{name:<20} {gflops:7.1} GFLOP/s");
    }
}
