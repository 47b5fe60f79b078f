use half::bf16;

use super::*;
use crate::cpu::simd::Isa;

fn numbers<E: Element>(n: usize, salt: usize) -> Vec<E> {
    (0..n)
        .map(|i| E::from_f32(((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.5 - 1.0))
        .collect()
}

/// The chain of the module's first paragraph, written plainly: blocks of the depth, each a chain of its own, are added to `c` in order. `first`
/// is what the chain of the first block begins with.
fn add_chain<E: Element>(
    shape: Shape,
    block: usize,
    a: impl Fn(usize, usize) -> E,
    b: impl Fn(usize, usize) -> E,
    first: impl Fn(usize, usize) -> f32,
    c: &mut [f32],
) {
    for (i, j) in (0..shape.rows).flat_map(|i| (0..shape.columns).map(move |j| (i, j))) {
        for start in (0..shape.depth).step_by(block) {
            let end = shape.depth.min(start + block);
            let begin = if start == 0 { first(i, j) } else { 0.0 };
            c[i * shape.columns + j] += (start..end).fold(begin, |sum, p| {
                a(i, p).to_f32().mul_add(b(p, j).to_f32(), sum)
            });
        }
    }
}

/// Equal to the bit, but where the processor multiplies pairs in its own order: there within what rounding can do.
fn assert_equals_chain<E: Element>(found: &[f32], expected: &[f32], depth: usize, what: &str) {
    let pairs = E::PRECISION == Precision::Bf16 && Isa::detect() >= Isa::Avx512Bf16;
    let largest = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Each of `depth` sums is rounded once in either order, and none is much larger than the largest result.
        let allowed = if pairs {
            f32::EPSILON * depth as f32 * largest
        } else {
            0.0
        };
        assert!(
            (found - expected).abs() <= allowed,
            "{what}: {i} is {found}, not {expected}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 2),
    (1, 48, 576),
    (3, 50, 194),
    (8, 16, 192),
    (9, 47, 400),
    (33, 200, 70),
    (130, 64, 64),
    (300, 20, 16),
    (25, 96, 5000),
];

fn products_of_packed_operands<E: Element>() {
    for (rows, columns, depth) in SHAPES {
        let shape = Shape {
            rows,
            columns,
            depth,
        };
        let (a, b) = (
            numbers::<E>(rows * depth, 1),
            numbers::<E>(columns * depth, 2),
        );
        let left = Left::rows(&a, depth);
        let mut by_row = Panels::default();
        by_row.pack_rows(&b, columns, depth, columns, 1.0).unwrap();
        let mut c = vec![f32::NAN; rows * columns];
        matmul_here(shape, left, by_row.right(), &mut c, columns, Write::Set);
        let mut expected = vec![0.0; rows * columns];
        add_chain(
            shape,
            depth,
            |i, p| a[i * depth + p],
            |p, j| b[p * columns + j],
            |_, _| 0.0,
            &mut expected,
        );
        assert_equals_chain::<E>(&c, &expected, depth, &format!("{shape:?}, B by rows"));

        // The same B as the transpose of a weight gives the same bits.
        let turned: Vec<E> = (0..columns * depth)
            .map(|i| b[i % depth * columns + i / depth])
            .collect();
        let mut by_weight = Panels::default();
        by_weight
            .pack_weight(&turned, depth, columns, depth, 1.0)
            .unwrap();
        let mut d = vec![f32::NAN; rows * columns];
        matmul_here(shape, left, by_weight.right(), &mut d, columns, Write::Set);
        assert_eq!(c, d, "{shape:?}, B as a weight");

        // And so does the transpose of A, packed.
        let turned: Vec<E> = (0..rows * depth)
            .map(|i| a[i % rows * depth + i / rows])
            .collect();
        let mut words = Vec::new();
        pack_left::<E, E>(&turned, rows, depth, rows, &mut words);
        let mut d = vec![1.0; rows * columns];
        matmul_here(
            shape,
            Left::packed(&words, depth),
            by_row.right(),
            &mut d,
            columns,
            Write::Add,
        );
        let added: Vec<f32> = c.iter().map(|x| 1.0 + x).collect();
        assert_eq!(d, added, "{shape:?}, A turned and added");

        // Rounding to E is the last thing that happens, for any number of threads.
        let rounded: Vec<E> = c.iter().map(|x| E::from_f32(*x)).collect();
        for n_threads in [1, 3] {
            let mut d = vec![E::default(); rows * columns];
            matmul(
                &Pool::new(n_threads),
                shape,
                left,
                by_row.right(),
                &mut d,
                columns,
            );
            assert_eq!(d, rounded, "{shape:?}, {n_threads} threads");
        }
    }
}

#[test]
fn products_equal_the_chain_in_every_form() {
    products_of_packed_operands::<f32>();
    products_of_packed_operands::<bf16>();
}

fn outer_products<E: Element>() {
    for (rows, columns, depth) in [
        (16, 576, 100),
        (576, 16, 100),
        (48, 200, 33),
        (3, 5, 1),
        (100, 7, 2500),
    ] {
        let shape = Shape {
            rows,
            columns,
            depth,
        };
        let (a, b) = (
            numbers::<E>(depth * (rows + 2), 1),
            numbers::<E>(depth * columns, 2),
        );
        let (mut expected, block) = (vec![0.5; rows * columns], DEPTH_BLOCK * E::PER_WORD);
        add_chain(
            shape,
            block,
            |i, p| a[p * (rows + 2) + i],
            |p, j| b[p * columns + j],
            |_, _| 0.0,
            &mut expected,
        );
        for n_threads in [1, 2, 3] {
            let mut c = vec![0.5; rows * columns];
            add_outer(
                &Pool::new(n_threads),
                shape,
                &a,
                rows + 2,
                &b,
                columns,
                &mut c,
            );
            assert_equals_chain::<E>(
                &c,
                &expected,
                depth,
                &format!("{shape:?}, {n_threads} threads"),
            );
        }
    }
}

#[test]
fn sums_over_rows_equal_the_chain() {
    outer_products::<f32>();
    outer_products::<bf16>();
}

fn weight_of<W: Element>(w: &[W], columns: usize, depth: usize) -> Panels<W> {
    Panels::from_weight_rows(&Pool::new(2), columns, depth, |n, row| {
        row.copy_from_slice(&w[n * depth..(n + 1) * depth])
    })
    .unwrap()
}

/// Both products with a weight stored in W and computed in E: with a bias forward, with a low-rank change of some rows, in one pass.
fn linears<W: Element, E: Element>(wrap: impl Fn(Panels<W>) -> Weight) {
    for (rows, n_out, n_in) in [
        (1, 40, 64),
        (30, 100, 96),
        (70, 48, 1000),
        (5, 4200, 50),
        (3, 20, 9000),
    ] {
        let w = numbers::<W>(n_out * n_in, 3);
        let weight = wrap(weight_of(&w, n_out, n_in));
        for side in [Side::Forward, Side::Turned] {
            let (columns, depth) = weight.size(side);
            let shape = Shape {
                rows,
                columns,
                depth,
            };
            let x = numbers::<E>(rows * depth, 4);
            let mut bias = numbers::<f32>(columns, 5);
            let at = |p: usize, j: usize| match side {
                Side::Forward => E::from_f32(w[j * n_in + p].to_f32()),
                Side::Turned => E::from_f32(w[p * n_in + j].to_f32()),
            };
            // Rows from the second on are changed, by ranks 0..2 in the first columns and 2..4 in the others.
            let (from, rank, half) = (1.min(rows - 1), 4, columns / 2);
            let (h, q) = (
                numbers::<E>((rows - from) * rank, 6),
                numbers::<E>(rank * columns, 7),
            );
            let reaches = |r: usize, j: usize| (r < 2) == (j < half);
            let change = |i: usize, j: usize| {
                let ranks = (0..rank).filter(|&r| i >= from && reaches(r, j));
                ranks.fold(0.0, |sum, r| {
                    h[(i - from) * rank + r]
                        .to_f32()
                        .mul_add(q[r * columns + j].to_f32(), sum)
                })
            };
            let mut expected: Vec<f32> = (0..rows * columns).map(|i| bias[i % columns]).collect();
            add_chain(
                shape,
                DEPTH_BLOCK * E::PER_WORD,
                |i, p| x[i * depth + p],
                at,
                change,
                &mut expected,
            );
            let masked: Vec<E> = (0..rank * columns)
                .map(|i| {
                    if reaches(i / columns, i % columns) {
                        q[i]
                    } else {
                        E::default()
                    }
                })
                .collect();
            let mut panels = Panels::default();
            panels
                .pack_rows(&masked, columns, rank, columns, 1.0)
                .unwrap();
            let reach = [(0..half, 0..2), (half..columns, 2..4)];
            let change = |rows: Range<usize>| LowRank {
                h: Left::rows(&h[(rows.start - from) * rank..], rank),
                rows,
                q: &panels,
                reach: &reach,
            };
            let middle = from + (rows - from) / 2;
            let one = [change(from..rows)];
            // As if the rows had different adapters.
            let two = [change(from..middle), change(middle..rows)];
            bias.resize(columns.next_multiple_of(PANEL), 0.0);
            let mut results = Vec::new();
            for (n_threads, changes) in [(1, &one[..]), (3, &one[..]), (1, &two[..]), (3, &two[..])]
            {
                let mut y = vec![f32::NAN; rows * columns];
                linear(
                    &Pool::new(n_threads),
                    rows,
                    Left::rows(&x, depth),
                    (&weight, side),
                    Some(&bias),
                    changes,
                    Out::SetSums(&mut y),
                );
                assert_equals_chain::<E>(
                    &y,
                    &expected,
                    depth + rank,
                    &format!("{shape:?} {side:?}, {n_threads} threads"),
                );
                results.push(y);
            }
            assert!(
                results.iter().all(|y| *y == results[0]),
                "{shape:?} {side:?}: adapters and threads"
            );
            // A row of a batch equals its single run.
            let mut y = vec![f32::NAN; columns];
            let last = Left::rows(&x[(rows - 1) * depth..], depth);
            let mut all = vec![f32::NAN; rows * columns];
            linear(
                &Pool::new(1),
                1,
                last,
                (&weight, side),
                None,
                &[],
                Out::SetSums(&mut y),
            );
            linear(
                &Pool::new(2),
                rows,
                Left::rows(&x, depth),
                (&weight, side),
                None,
                &[],
                Out::SetSums(&mut all),
            );
            assert_eq!(y, all[(rows - 1) * columns..], "{shape:?} {side:?}, alone");
        }
    }
}

#[test]
fn linears_equal_the_chain_for_every_storage_and_precision() {
    linears::<f32, f32>(Weight::F32);
    linears::<bf16, f32>(Weight::Bf16);
    linears::<f32, bf16>(Weight::F32);
    linears::<bf16, bf16>(Weight::Bf16);
}

#[test]
fn a_row_of_a_weight_comes_back() {
    let w = numbers::<bf16>(37 * 50, 1);
    let mut row = vec![0.0; 50];
    Weight::Bf16(weight_of(&w, 37, 50)).copy_row(36, &mut row);
    assert_eq!(
        row,
        w[36 * 50..].iter().map(|x| x.to_f32()).collect::<Vec<_>>()
    );
}
