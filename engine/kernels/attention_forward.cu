// Causal attention of packed documents with grouped-query heads, forward: softmax(cap(scale·Q·Kᵀ))·V, scores never in memory.
// Source: FlashAttention-2, Dao 2023 (arXiv:2307.08691).
//
// attention_forward_C(qkv, ld_qkv, out, ld_out, lse, tiles, T, n_heads, n_kv_heads, scale, softcap, window), C = 64, 96, 128, 256
//   grid (tiles, query heads). A tile is {first row, first row of its document, end of its document, 0}: TILE rows of one document,
//   clipped to its end. out (T, H·C); lse (H, T), the natural log-sum-exp of each row's scores.
//   softcap 0: none. window 0: none, else query i sees keys j with i − j < window.
//
//   C     TILE  threads  dynamic shared memory
//   64    128   128      32768
//   96    128   128      49152
//   128   128   128      57344
//   256    64   128      98304
// The same numbers are the module's `attention_forward_shapes`, int[4][4]: a row is {C, TILE, threads, bytes}.
#include "attention.cuh"

// A warp has 16·M queries and meets KEYS keys at a time; BLOCKS blocks share a multiprocessor.
template <int C> struct Shape;
template <> struct Shape<64> { static constexpr int M = 2, KEYS = 64, BLOCKS = 2; };
template <> struct Shape<96> { static constexpr int M = 2, KEYS = 64, BLOCKS = 2; };
template <> struct Shape<128> { static constexpr int M = 2, KEYS = 48, BLOCKS = 2; };
template <> struct Shape<256> { static constexpr int M = 1, KEYS = 64, BLOCKS = 2; };

#define WARPS 4
#define THREADS (WARPS * WARP)

template <int C> struct Sizes : Shape<C> {
    static constexpr int TILE = WARPS * 16 * Shape<C>::M;
    static constexpr int BYTES = (TILE + 2 * Shape<C>::KEYS) * C * 2;
};

extern "C" __device__ int attention_forward_shapes[4][4] = {
#define SHAPE(C) {C, Sizes<C>::TILE, THREADS, Sizes<C>::BYTES},
    FOR_HEAD_DIMS(SHAPE)
#undef SHAPE
};

template <int C>
__device__ __forceinline__ void attention_forward(
    const bf16* qkv, int ld_qkv, bf16* out, int ld_out, float* lse, const int4* tiles, int T, int n_heads, int n_kv_heads, float scale,
    float softcap, int window) {
    using S = Sizes<C>;
    constexpr int M = S::M, TILE = S::TILE, KEYS = S::KEYS, N = KEYS / 8;
    using Queries = Tile<C, TILE>;
    using Keys = Tile<C, KEYS>;

    const int4 tile = tiles[blockIdx.x];
    const int first = tile.x, end = tile.z, head = blockIdx.y;
    const int kv = head / (n_heads / n_kv_heads);
    const Sight sight{window};
    const int first_key = window == 0 ? tile.y : max(tile.y, first - window + 1);
    const int end_key = min(first + TILE, end);
    const bf16* keys = qkv + (n_heads + kv) * C;

    const u32 queries_at = shared_address(attention_shared);
    const u32 keys_at = queries_at + Queries::BYTES, values_at = keys_at + Keys::BYTES;
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16 * M;

    Queries::template load<THREADS>(queries_at, qkv + size_t(first) * ld_qkv + head * C, ld_qkv, end - first);
    Keys::template load<THREADS>(keys_at, keys + size_t(first_key) * ld_qkv, ld_qkv, end_key - first_key);
    commit_copies();

    // Scores are those before the scale, or capped ones; times `factor` they are logarithms to base 2.
    const float factor = softcap > 0.0f ? LOG2_E : scale * LOG2_E;
    const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
    float sums[M][C / 8][4], top[M][2], total[M][2];
    set_zero(sums);
#pragma unroll
    for (int m = 0; m < M; m++) {
        top[m][0] = top[m][1] = -INFINITY;
        total[m][0] = total[m][1] = 0.0f;
    }

#pragma unroll 1
    for (int key = first_key; key < end_key; key += KEYS) {
        wait_for_copies();
        __syncthreads();  // the keys are here, and nobody reads the values before
        Keys::template load<THREADS>(values_at, keys + size_t(key) * ld_qkv + n_kv_heads * C, ld_qkv, end_key - key);
        commit_copies();

        float x[M][N][4];
        set_zero(x);
        multiply_rows<C, TILE, KEYS>(x, queries_at, warp_row, keys_at);

        if (softcap > 0.0f) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) x[m][n][i] = softcap * cap_share(x[m][n][i], cap_slope);
                }
            }
        }
        if (!sight.all(first + warp_row, 16 * M, key, KEYS)) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int query = first + warp_row + m * 16 + lane / 4 + i / 2 * 8;
                        if (!sight.sees(query, key + n * 8 + lane % 4 * 2 + i % 2)) x[m][n][i] = -INFINITY;
                    }
                }
            }
        }

#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float new_top = top[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) new_top = fmaxf(new_top, fmaxf(x[m][n][2 * half], x[m][n][2 * half + 1]));
                new_top = fmaxf(new_top, __shfl_xor_sync(ALL_LANES, new_top, 1));
                new_top = fmaxf(new_top, __shfl_xor_sync(ALL_LANES, new_top, 2));
                const float base = new_top == -INFINITY ? 0.0f : new_top * factor;  // nothing seen yet
                const float rescale = exp2_fast(top[m][half] * factor - base);
                top[m][half] = new_top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        x[m][n][i] = exp2_fast(x[m][n][i] * factor - base);
                        sum += x[m][n][i];
                    }
                }
                total[m][half] = total[m][half] * rescale + sum;
#pragma unroll
                for (int n = 0; n < C / 8; n++) {
                    sums[m][n][2 * half] *= rescale;
                    sums[m][n][2 * half + 1] *= rescale;
                }
            }
        }
        wait_for_copies();
        __syncthreads();  // the values are here, and nobody reads the keys any more
        if (key + KEYS < end_key) {
            Keys::template load<THREADS>(keys_at, keys + size_t(key + KEYS) * ld_qkv, ld_qkv, end_key - key - KEYS);
            commit_copies();
        }
        multiply_by_tile<C, KEYS>(sums, x, values_at);
    }

    float inverse[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[m][half];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            inverse[m][half] = reciprocal_fast(sum);
            const int row = first + warp_row + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && row < end) lse[size_t(head) * T + row] = (top[m][half] * factor + log2_fast(sum)) * LN_2;
        }
    }
    bf16* to = out + size_t(first + warp_row) * ld_out + head * C;
    Queries::template store<M>(queries_at, warp_row, sums, inverse, to, ld_out, end - first - warp_row);
}

#define KERNEL(C)                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, Shape<C>::BLOCKS) attention_forward_##C(                                    \
        const bf16* __restrict__ qkv, int ld_qkv, bf16* __restrict__ out, int ld_out, float* __restrict__ lse,                        \
        const int4* __restrict__ tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window) {                 \
        attention_forward<C>(qkv, ld_qkv, out, ld_out, lse, tiles, T, n_heads, n_kv_heads, scale, softcap, window);                   \
    }
FOR_HEAD_DIMS(KERNEL)
