// What the attention kernels for sm_90a share: products of tiles by warpgroups, and the warpgroup that copies.
#pragma once
#include "hopper.cuh"

#if HOPPER

// ---- Products of tiles.

// Begins sums (64, 8·N) (+)= a · bᵀ over C channels, and leaves them a group.
template <int C, class A, class B, int N> __device__ __forceinline__ void multiply_rows_group(float (&sums)[N][4], u64 a, u64 b) {
#pragma unroll
    for (int k = 0; k < C / 16; k++) multiply_group<0>(sums, a + channels_on<A>(k), b + channels_on<B>(k), k > 0);
    commit_products();
}

// The same with `a` in registers.
template <class B, int K, int N> __device__ __forceinline__ void multiply_rows_group(float (&sums)[N][4], const u32 (&a)[K][4], u64 b) {
#pragma unroll
    for (int k = 0; k < K; k++) multiply_group<0>(sums, a[k], b + channels_on<B>(k), k > 0);
    commit_products();
}

// A warp's 16 rows of a tile, from `row` on, as a left factor.
template <class T, int K> __device__ __forceinline__ void load_factor(u32 (&a)[K][4], u32 tile, int row) {
    const u32 lane = threadIdx.x % WARP;
    tile += row * T::PITCH + T::place(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < K; k++) load_matrices(a[k], T::further(tile, 2 * k));
}

// Begins sums (64, 8·N) += p · b, p (64, 16·K) in registers, and leaves them a group.
template <int K, int N> __device__ __forceinline__ void multiply_by_tile_group(float (&sums)[N][4], const u32 (&p)[K][4], u64 b) {
#pragma unroll
    for (int k = 0; k < K; k++) multiply_group<1>(sums, p[k], b + rows_on(k), true);
    commit_products();
}

// Sums of products as the left factor of the next.
template <int K> __device__ __forceinline__ void as_factor(u32 (&p)[K][4], const float (&x)[2 * K][4]) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        p[k][0] = to_bf16x2(x[2 * k][0], x[2 * k][1]);
        p[k][1] = to_bf16x2(x[2 * k][2], x[2 * k][3]);
        p[k][2] = to_bf16x2(x[2 * k + 1][0], x[2 * k + 1][1]);
        p[k][3] = to_bf16x2(x[2 * k + 1][2], x[2 * k + 1][3]);
    }
}

// A warp begins to read 16 rows of `from`, `ld` apart, into a tile, from `row` on; rows from `n_rows` on become zeros.
template <class T> __device__ __forceinline__ void load_rows(u32 tile, int row, const bf16* from, int ld, int n_rows) {
    constexpr int STEP = WARP / T::PIECES;
    const int lane = threadIdx.x % WARP, piece = lane % T::PIECES;
#pragma unroll
    for (int r = lane / T::PIECES; r < 16; r += STEP) {
#pragma unroll
        for (int panel = 0; panel < T::PANELS; panel++) {
            copy_16(
                tile + row * T::PITCH + panel * T::PANEL + T::place(r, piece), from + size_t(r) * ld + (panel * T::PIECES + piece) * 8,
                r < n_rows);
        }
    }
}

// ---- The copying warpgroup: threads 0 to 127.

// Begins loads of tiles one after the other, and announces each when it is here, after the next has begun.
struct Copier {
    u32 pending = 0;  // the barrier of the last

    // Rows of `from`, `ld` apart; rows from `n_rows` on become zeros.
    template <class T> static __device__ __forceinline__ void load(u32 to, const bf16* from, int ld, int n_rows) {
        constexpr int STEP = WARPGROUP / T::PIECES, ROWS = T::PANEL / T::PITCH;
        static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "whole steps, in each of which rows are permuted alike");
        const int row = threadIdx.x / T::PIECES, piece = threadIdx.x % T::PIECES;
        to += T::place(row, piece);
        from += size_t(row) * ld + piece * 8;
        u64 step_bytes = u64(STEP) * 2 * ld;
        asm volatile("" : "+l"(step_bytes));  // or addresses of all steps take registers for good
#pragma unroll
        for (int step = 0; step < ROWS / STEP; step++) {
#pragma unroll
            for (int panel = 0; panel < T::PANELS; panel++) {
                copy_16(to + panel * T::PANEL + step * STEP * T::PITCH, from + panel * 8 * T::PIECES, row + step * STEP < n_rows);
            }
            from = reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(from) + step_bytes);
        }
    }

    // What was begun before is to be announced at `barrier`.
    __device__ __forceinline__ void announce(u32 barrier) {
        commit_copies();
        if (pending != 0) {
            wait_for_copies_but<1>();
            fence_for_products();
            arrive(pending);
        }
        pending = barrier;
    }

    __device__ __forceinline__ void finish() {
        wait_for_copies();
        fence_for_products();
        arrive(pending);
    }
};

#endif
