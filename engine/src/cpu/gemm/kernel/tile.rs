//! The loops of a tile, written once for every vector type.

/// Writes the kernels of a level. The module it is used in has, as functions with the attribute's features: a vector type `V` of
/// `LANES` f32, `zero`, `load`, `load_bytes` (as f32), `load_nibbles` (the lower and the upper halves of bytes), `store`, `store_rounded` (to bf16), `splat` (of a word's bits), `mul_add`, `add`, `low` and `high` (of every word), and `dot`
/// for pairs of bf16, which is used where `HAS_DOT`.
macro_rules! kernels {
    ($(#[$attribute:meta])* $([$rows:literal x $panels:literal])*) => {
        use $crate::cpu::gemm::kernel::{
            BF16, BYTES, F32, FEW_ROWS, Form, LINE, MIXED, NIBBLES, PANEL, Segment, Target, Tile, ask_for, high as high_of,
            low as low_of, round,
        };

        /// The products alone. Here every index is a constant once the loops are unrolled, so the sums stay in registers.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        #[inline]
        unsafe fn products<const DOT: u8, const ROWS: usize, const VECTORS: usize>(
            s: &Segment,
            mut acc: [[V; VECTORS]; ROWS],
        ) -> [[V; VECTORS]; ROWS] {
            let n_panels = const { (VECTORS * LANES).div_ceil(PANEL) };
            // SAFETY: promised by the caller.
            unsafe {
                let (mut a, mut b) = (s.a, s.b);
                for _ in 0..s.units {
                    // As below; a unit of a panel is a line.
                    if ROWS <= FEW_ROWS {
                        for panel in n_panels..2 * n_panels {
                            ask_for(b.wrapping_add(panel * s.b_panel).cast());
                        }
                    }
                    let mut words = [zero(); VECTORS];
                    for v in 0..VECTORS {
                        words[v] = load(b.add(v * LANES / PANEL * s.b_panel + v * LANES % PANEL).cast());
                    }
                    let widened = DOT == MIXED || (DOT == BF16 && !HAS_DOT);
                    let (mut lows, mut highs) = ([zero(); VECTORS], [zero(); VECTORS]);
                    if widened {
                        for v in 0..VECTORS {
                            (lows[v], highs[v]) = (low(words[v]), high(words[v]));
                        }
                    }
                    for i in 0..ROWS {
                        let at = a.add(i / 8 * s.a_group + i % 8 * s.a_row);
                        if widened {
                            let (x, y) = if DOT == MIXED { (*at, *at.add(1)) } else { (low_of(*at), high_of(*at)) };
                            let (x, y) = (splat(x), splat(y));
                            for v in 0..VECTORS {
                                acc[i][v] = mul_add(y, highs[v], mul_add(x, lows[v], acc[i][v]));
                            }
                        } else {
                            let x = splat(*at);
                            for v in 0..VECTORS {
                                acc[i][v] = if DOT == F32 { mul_add(x, words[v], acc[i][v]) } else { dot(acc[i][v], x, words[v]) };
                            }
                        }
                    }
                    a = a.add(s.a_unit);
                    b = b.add(PANEL);
                }
                acc
            }
        }

        /// The same with codes and their scales for words; `DOT` is `BYTES` or `NIBBLES`.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        #[inline]
        unsafe fn coded_products<const DOT: u8, const ROWS: usize, const VECTORS: usize>(
            s: &Segment,
            mut acc: [[V; VECTORS]; ROWS],
        ) -> [[V; VECTORS]; ROWS] {
            let units_of_byte = if DOT == NIBBLES { 2 } else { 1 };
            let n_panels = const { (VECTORS * LANES).div_ceil(PANEL) };
            // SAFETY: promised by the caller.
            unsafe {
                let (mut a, mut b, mut scales) = (s.a, s.b.cast::<u8>(), s.scales);
                for _ in 0..s.units / s.scales_group {
                    let (mut scale, mut offset) = ([zero(); VECTORS], [zero(); VECTORS]);
                    for v in 0..VECTORS {
                        let at = scales.add(v * LANES / PANEL * s.scales_panel + v * LANES % PANEL);
                        (scale[v], offset[v]) = (load(at), load(at.add(PANEL)));
                    }
                    for i in 0..s.scales_group / units_of_byte {
                        // A panel is soon over, and the processor sees no further: the next tile's are asked for here.
                        if ROWS <= FEW_ROWS && i % (LINE / PANEL) == 0 {
                            for panel in n_panels..2 * n_panels {
                                ask_for(b.wrapping_add(panel * 4 * s.b_panel));
                            }
                        }
                        let (mut first, mut second) = ([zero(); VECTORS], [zero(); VECTORS]);
                        for v in 0..VECTORS {
                            let at = b.add(v * LANES / PANEL * 4 * s.b_panel + v * LANES % PANEL);
                            if DOT == NIBBLES {
                                let (low, high) = load_nibbles(at);
                                first[v] = mul_add(low, scale[v], offset[v]);
                                second[v] = mul_add(high, scale[v], offset[v]);
                            } else {
                                first[v] = mul_add(load_bytes(at), scale[v], offset[v]);
                            }
                        }
                        for i in 0..ROWS {
                            let at = a.add(i / 8 * s.a_group + i % 8 * s.a_row);
                            let x = splat(*at);
                            for v in 0..VECTORS {
                                acc[i][v] = mul_add(x, first[v], acc[i][v]);
                            }
                            if DOT == NIBBLES {
                                let y = splat(*at.add(s.a_unit));
                                for v in 0..VECTORS {
                                    acc[i][v] = mul_add(y, second[v], acc[i][v]);
                                }
                            }
                        }
                        a = a.add(units_of_byte * s.a_unit);
                        b = b.add(PANEL);
                    }
                    scales = scales.add(2 * PANEL);
                }
                acc
            }
        }

        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        unsafe fn tile<const DOT: u8, const CHANGE: u8, const ROWS: usize, const VECTORS: usize>(t: &Tile) {
            // SAFETY: promised by the caller.
            unsafe {
                let mut sums = [[zero(); VECTORS]; ROWS];
                if !t.start.is_null() {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = load(t.start.add(i * t.start_row + v * LANES));
                        }
                    }
                }
                if t.change.units > 0 {
                    sums = products::<CHANGE, ROWS, VECTORS>(&t.change, sums);
                }
                sums = match DOT {
                    BYTES | NIBBLES => coded_products::<DOT, ROWS, VECTORS>(&t.main, sums),
                    _ => products::<DOT, ROWS, VECTORS>(&t.main, sums),
                };
                if !t.plus.is_null() {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = add(*sum, load(t.plus.add(i * t.plus_row + v * LANES)));
                        }
                    }
                }
                if t.n_columns < VECTORS * LANES {
                    for (i, sums) in sums.iter().enumerate() {
                        put_part(t, i, sums);
                    }
                    return;
                }
                match t.target {
                    Target::Set(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                store(c.add(i * t.row + v * LANES), sum);
                            }
                        }
                    }
                    Target::Add(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                let at = c.add(i * t.row + v * LANES);
                                store(at, add(load(at), sum));
                            }
                        }
                    }
                    Target::Round(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                store_rounded(c.add(i * t.row + v * LANES).cast(), sum);
                            }
                        }
                    }
                }
            }
        }

        /// Hands the columns that are there of row `i` to the target.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        unsafe fn put_part<const VECTORS: usize>(t: &Tile, i: usize, sums: &[V; VECTORS]) {
            // SAFETY: promised by the caller.
            unsafe {
                let mut row = [[0.0f32; LANES]; VECTORS];
                for (to, &sum) in row.iter_mut().zip(sums) {
                    store(to.as_mut_ptr(), sum);
                }
                for (j, &x) in row.as_flattened()[..t.n_columns].iter().enumerate() {
                    let at = i * t.row + j;
                    match t.target {
                        Target::Set(c) => *c.add(at) = x,
                        Target::Add(c) => *c.add(at) += x,
                        Target::Round(c) => *c.add(at).cast::<u16>() = round(x),
                    }
                }
            }
        }

        pub fn forms() -> Vec<Form> {
            vec![$(Form {
                rows: $rows,
                panels: $panels,
                run: [
                    tile::<F32, F32, $rows, { $panels * PANEL / LANES }>,
                    tile::<BF16, BF16, $rows, { $panels * PANEL / LANES }>,
                    tile::<MIXED, F32, $rows, { $panels * PANEL / LANES }>,
                    tile::<BYTES, F32, $rows, { $panels * PANEL / LANES }>,
                    tile::<NIBBLES, F32, $rows, { $panels * PANEL / LANES }>,
                ],
            }),*]
        }
    };
}
