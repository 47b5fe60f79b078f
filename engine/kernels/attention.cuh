// What the attention kernels share: tiles of rows in shared memory and products of them on the matrix units (mma.sync m16n8k16).
#pragma once
#include "common.cuh"

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// ---- Instructions.

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// 16 bytes of zeros where `from` does not exist.
__device__ __forceinline__ void copy_16(u32 to, const void* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0));
}

__device__ __forceinline__ void copy_4(u32 to, const void* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(exists ? 4 : 0));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// All groups of copies but the last N are here.
template <int N> __device__ __forceinline__ void wait_for_copies_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8×8 matrices, whose rows the addresses of eight lanes each give.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at));
}

__device__ __forceinline__ void load_turned_matrices(u32 (&out)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at));
}

// sum (16, 8) += a (16, 16) · b (16, 8)
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

__device__ __forceinline__ float log2_fast(float x) {
    float out;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

__device__ __forceinline__ void store_shared(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }

__device__ __forceinline__ float2 load_shared_8(u32 at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at) : "memory");
    return x;
}

__device__ __forceinline__ uint4 load_shared_16(u32 at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
    return x;
}

// A named barrier of `threads` threads, at which some only announce what they have written.
__device__ __forceinline__ void announce(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void await(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- Tiles.

// ROWS rows of C numbers in shared memory: panels of 64 columns (of 32 where 64 does not divide C), each with its rows end to end.
// The 16-byte pieces of a row are permuted by the row's number, so that one piece of eight rows lies in eight different banks.
// A tile begins at a multiple of 1024 bytes.
template <int C, int ROWS> struct Tile {
    static constexpr int PIECES = C % 64 == 0 ? 8 : 4;  // of a row of a panel
    static constexpr int PITCH = 16 * PIECES;           // bytes from row to row of a panel
    static constexpr int PANEL = ROWS * PITCH;
    static constexpr int PANELS = C / (8 * PIECES);
    static constexpr int BYTES = PANELS * PANEL;

    // Where a piece of the first panel lies.
    static __device__ __forceinline__ u32 place(u32 row, u32 piece) {
        return row * PITCH + ((piece ^ (PIECES == 8 ? row & 7 : row >> 1 & 3)) << 4);
    }

    // Where pieces lie whose number is even at run time's `at` (piece 0 or 1) and `piece`, an even constant, further.
    static __device__ __forceinline__ u32 further(u32 at, int piece) {
        return (at ^ (piece % PIECES << 4)) + piece / PIECES * PANEL;
    }

    // Begins to read rows of `from`, `ld` apart; rows from `n_rows` on become zeros.
    template <int THREADS> static __device__ __forceinline__ void load(u32 to, const bf16* from, int ld, int n_rows) {
        if (n_rows >= ROWS) {
            load<THREADS, true>(to, from, ld, n_rows);
        } else {
            load<THREADS, false>(to, from, ld, n_rows);
        }
    }

    template <int THREADS, bool ALL_ROWS>
    static __device__ __forceinline__ void load(u32 to, const bf16* from, int ld, int n_rows) {
        constexpr int STEP = THREADS / PIECES;
        static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "whole steps, in each of which rows are permuted alike");
        const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        to += place(row, piece);
        from += size_t(row) * ld + piece * 8;
#pragma unroll
        for (int step = 0; step < ROWS / STEP; step++) {
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) {
                copy_16(
                    to + panel * PANEL + step * STEP * PITCH, from + size_t(step * STEP) * ld + panel * 8 * PIECES,
                    ALL_ROWS || row + step * STEP < n_rows);
            }
        }
    }

    // A warp writes 16·M rows of sums, from the tile's row `first` on, times `factor[m][half]`, into the tile and then `n_rows` of
    // them to `to`. No other warp may use these rows of the tile.
    template <int M>
    static __device__ __forceinline__ void store(
        u32 tile, int first, const float (&sums)[M][C / 8][4], const float (&factor)[M][2], bf16* to, int ld, int n_rows) {
        const int lane = threadIdx.x % WARP;
        tile += first * PITCH;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < M; m++) {
            const u32 upper = tile + m * 16 * PITCH + place(lane / 4, 0) + lane % 4 * 4;
#pragma unroll
            for (int n = 0; n < C / 8; n++) {
                const u32 at = (upper ^ (n % PIECES << 4)) + n / PIECES * PANEL;
                store_shared(at, to_bf16x2(sums[m][n][0] * factor[m][0], sums[m][n][1] * factor[m][0]));
                store_shared(at + 8 * PITCH, to_bf16x2(sums[m][n][2] * factor[m][1], sums[m][n][3] * factor[m][1]));
            }
        }
        __syncwarp();
        constexpr int STEP = WARP / PIECES;
        const int piece = lane % PIECES;
#pragma unroll
        for (int row = lane / PIECES; row < 16 * M; row += STEP) {
            if (row < n_rows) {
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++) {
                    *reinterpret_cast<uint4*>(to + size_t(row) * ld + (panel * PIECES + piece) * 8) =
                        load_shared_16(tile + panel * PANEL + place(row, piece));
                }
            }
        }
    }
};

// sums (16·M, 8·N) += a · bᵀ, `a` being 16·M rows from row `a_row` of a tile on and `b` the first 8·N rows of one.
template <int C, int A_ROWS, int B_ROWS, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&sums)[M][N][4], u32 a, int a_row, u32 b) {
    using A = Tile<C, A_ROWS>;
    using B = Tile<C, B_ROWS>;
    const u32 lane = threadIdx.x % WARP;
    a += a_row * A::PITCH + A::place(lane % 16, lane / 16);
    b += B::place(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < C / 16; k++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(left[m], A::further(a, 2 * k) + m * 16 * A::PITCH);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 right[4];
            load_matrices(right, B::further(b, 2 * k) + n * 8 * B::PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(sums[m][n], left[m], right[0], right[1]);
                multiply(sums[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// sums (16·M, C) += p (16·M, 8·N) · b, `b` being the first 8·N rows of a tile. Sums of products lie in registers as the left factor
// of the next product does.
template <int C, int B_ROWS, int M, int N>
__device__ __forceinline__ void multiply_by_tile(float (&sums)[M][C / 8][4], const float (&p)[M][N][4], u32 b) {
    using B = Tile<C, B_ROWS>;
    const u32 lane = threadIdx.x % WARP;
    b += B::place(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left[m][0] = to_bf16x2(p[m][2 * k][0], p[m][2 * k][1]);
            left[m][1] = to_bf16x2(p[m][2 * k][2], p[m][2 * k][3]);
            left[m][2] = to_bf16x2(p[m][2 * k + 1][0], p[m][2 * k + 1][1]);
            left[m][3] = to_bf16x2(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < C / 8; n += 2) {
            u32 right[4];
            load_turned_matrices(right, B::further(b, n) + k * 16 * B::PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(sums[m][n], left[m], right[0], right[1]);
                multiply(sums[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void set_zero(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = 0.0f;
        }
    }
}

// ---- Blocks.

// What a block has, of a grid of (tiles, heads): tiles come with most work first, and blocks start in this order over all heads.
struct Place {
    int tile, head;

    __device__ __forceinline__ Place() : Place(blockIdx.y) {}

    __device__ __forceinline__ Place(u32 y) {
        const u32 block = y * gridDim.x + blockIdx.x;
        tile = block / gridDim.y;
        head = block % gridDim.y;
    }

    // Computed from the beginning.
    static __device__ __forceinline__ Place again() {
        u32 y;
        asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
        return Place(y);
    }
};

// ---- Scores.

// The share of `cap` that a score is: tanh(scale·x/cap), for `slope` = 2·log2(e)·scale/cap.
__device__ __forceinline__ float cap_share(float x, float slope) {
    return 1.0f - 2.0f * reciprocal_fast(1.0f + exp2_fast(x * slope));
}

// A query sees its own key and those before, less than a window away.
struct Sight {
    int window;  // 0: none

    __device__ __forceinline__ bool sees(int query, int key) const {
        return key <= query && (window == 0 || query - key < window);
    }

    // Whether each of consecutive queries sees each of consecutive keys.
    __device__ __forceinline__ bool all(int first_query, int n_queries, int first_key, int n_keys) const {
        return first_key + n_keys - 1 <= first_query && (window == 0 || first_query + n_queries - 1 - first_key < window);
    }
};

extern __shared__ __align__(1024) unsigned char attention_shared[];

#define FOR_HEAD_DIMS(X) X(64) X(96) X(128) X(256)
