use super::*;
use crate::simd::Isa;

fn numbers(n: usize, salt: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

/// The chain of the module's first paragraph, written plainly.
fn reference(
    shape: Shape,
    a: Left<'_>,
    b: impl Fn(usize, usize) -> f32,
    c: &mut [f32],
    write: Write,
) {
    for i in 0..shape.rows {
        for j in 0..shape.columns {
            let mut total = if write == Write::Add {
                Some(c[i * shape.columns + j])
            } else {
                None
            };
            for start in (0..shape.depth).step_by(DEPTH_BLOCK) {
                let mut sum = 0.0f32;
                for p in start..shape.depth.min(start + DEPTH_BLOCK) {
                    sum = a.values[i * a.row + p * a.depth].mul_add(b(p, j), sum);
                }
                total = Some(total.map_or(sum, |t| t + sum));
            }
            c[i * shape.columns + j] = total.unwrap_or(0.0);
        }
    }
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 48, 576),
    (3, 50, 193),
    (8, 16, 192),
    (9, 47, 400),
    (33, 200, 70),
    (130, 64, 64),
    (300, 20, 16),
    (5, 7, 0),
];

#[test]
fn every_form_equals_the_chain_bit_for_bit_for_any_thread_count() {
    for (rows, columns, depth) in SHAPES {
        let shape = Shape {
            rows,
            columns,
            depth,
        };
        let (a, b) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
        for write in [Write::Set, Write::Add] {
            let mut expected = numbers(rows * columns, 3);
            reference(
                shape,
                Left::rows(&a, depth),
                |p, j| b[p * columns + j],
                &mut expected,
                write,
            );
            for n_threads in [1, 2, 3] {
                let pool = Pool::new(n_threads);
                let mut c = numbers(rows * columns, 3);
                matmul(
                    &pool,
                    shape,
                    Left::rows(&a, depth),
                    Right::rows(&b, columns),
                    &mut c,
                    columns,
                    write,
                );
                assert_eq!(c, expected, "{shape:?} rows");
                let mut c = numbers(rows * columns, 3);
                let panels = Panels::from_rows(&b, columns, depth, columns);
                matmul(
                    &pool,
                    shape,
                    Left::rows(&a, depth),
                    panels.right(),
                    &mut c,
                    columns,
                    write,
                );
                assert_eq!(c, expected, "{shape:?} panels");
                matmul_here(
                    shape,
                    Left::rows(&a, depth),
                    panels.right(),
                    &mut numbers(rows * columns, 3),
                    columns,
                    write,
                );
            }
        }
    }
}

#[test]
fn a_turned_weight_gives_the_product_with_the_weight_itself() {
    for (rows, columns, depth) in [(5, 48, 100), (130, 576, 400), (1, 20, 17), (64, 333, 192)] {
        let shape = Shape {
            rows,
            columns,
            depth,
        };
        let (dy, w) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
        let mut expected = vec![0.0; rows * columns];
        reference(
            shape,
            Left::rows(&dy, depth),
            |p, j| w[p * columns + j],
            &mut expected,
            Write::Set,
        );
        for n_threads in [1, 2, 3] {
            let pool = Pool::new(n_threads);
            let weight = Panels::from_weight_rows(&pool, depth, columns, |n, row| {
                row.copy_from_slice(&w[n * columns..(n + 1) * columns]);
            });
            let mut dx = vec![7.0; rows * columns];
            matmul_turned(&pool, rows, &dy, depth, &weight.unwrap(), &mut dx);
            assert_eq!(dx, expected, "{shape:?}");
        }
    }
}

#[test]
fn a_transposed_left_operand_is_the_transpose() {
    let shape = Shape {
        rows: 20,
        columns: 50,
        depth: 70,
    };
    let (a, b) = (numbers(70 * 20, 1), numbers(70 * 50, 2));
    let mut expected = vec![0.0; 20 * 50];
    reference(
        shape,
        Left::transposed(&a, 20),
        |p, j| b[p * 50 + j],
        &mut expected,
        Write::Set,
    );
    let mut c = vec![0.0; 20 * 50];
    matmul(
        &Pool::new(2),
        shape,
        Left::transposed(&a, 20),
        Right::rows(&b, 50),
        &mut c,
        50,
        Write::Set,
    );
    assert_eq!(c, expected);
}

#[test]
fn packed_weights_are_scaled_and_give_their_rows_back() {
    let w = numbers(20 * 33, 1);
    let mut panels = Panels::default();
    panels.pack_weight(&w, 33, 20, 33, 2.0).unwrap();
    let mut row = vec![0.0; 33];
    for n in 0..20 {
        panels.copy_weight_row(n, &mut row);
        assert!(row.iter().zip(&w[n * 33..]).all(|(x, w)| *x == 2.0 * w));
    }
}

#[test]
fn the_level_of_the_machine_never_changes_a_bit() {
    let mut levels = vec![Isa::Portable];
    if Isa::detect() != Isa::Portable {
        levels.push(Isa::Avx2);
    }
    if Isa::detect() == Isa::Avx512 {
        levels.push(Isa::Avx512);
    }
    let (a, b) = (numbers(21 * 400, 1), numbers(400 * 70, 2));
    let panels = Panels::from_rows(&b, 70, 400, 70);
    let results: Vec<Vec<f32>> = levels
        .into_iter()
        .map(|isa| {
            let mut c = vec![0.0; 21 * 70];
            let out = SharedMut::new(&mut c);
            // SAFETY: `c` is 21 rows of 70, and the operands are as large as said.
            unsafe {
                Kernel::for_isa(isa).block(
                    0..21,
                    0..70,
                    400,
                    Left::rows(&a, 400),
                    panels.right(),
                    out,
                    70,
                    Write::Set,
                )
            };
            c
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}
