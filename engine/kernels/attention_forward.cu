// Causal attention of packed documents with grouped-query heads, forward: softmax(cap(scale·Q·Kᵀ))·V, scores never in memory.
// Source: FlashAttention-2, Dao 2023 (arXiv:2307.08691).
//
// attention_forward_C(qkv, ld_qkv, out, ld_out, lse, tiles, T, n_heads, n_kv_heads, scale, softcap, window), C = 64, 96, 128, 256
//   grid (tiles, query heads). A tile is {first row, first row of its document, end of its document, 0}: TILE rows of one document,
//   clipped to its end. out (T, H·C); lse (H, T), the natural log-sum-exp of each row's scores.
//   softcap 0: none. window 0: none, else query i sees keys j with i − j < window.
//
//   C     TILE  threads  dynamic shared memory
//   on sm_90a:
//   64    192   512      90240
//   128   128   384      163968
//   elsewhere, and 96 and 256 everywhere:
//   64    128   128      32768
//   96    128   128      49152
//   128   128   128      57344
//   256    64   128      98304
// The same numbers are the module's `attention_forward_shapes`, int[4][4]: a row is {C, TILE, threads, bytes}.
#include "attention_hopper.cuh"

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

#if HOPPER

// ---- With warpgroups, C = 64 and 128. Source: FlashAttention-3, Shah et al. 2024 (arXiv:2407.08608).
//
// The first warpgroup copies keys and values; each other one has 64 queries and meets KEYS keys at a time, those of the diagonal
// first. While one block's softmax is computed, the product of the block before with its values runs, and other warpgroups' products:
// they take turns to begin theirs.
template <int C> struct Groups;
template <> struct Groups<64> { static constexpr int N = 3, KEYS = 128, STAGES = 2, FEW = 32, MANY = 160; };
template <> struct Groups<128> { static constexpr int N = 2, KEYS = 128, STAGES = 2, FEW = 40, MANY = 232; };

template <int C> struct GroupSizes : Groups<C> {
    static constexpr int TILE = 64 * Groups<C>::N;
    static constexpr int THREADS_ALL = WARPGROUP * (Groups<C>::N + 1);
    static constexpr int BARRIERS = (TILE + 2 * Groups<C>::STAGES * Groups<C>::KEYS) * C * 2;
    static constexpr int BYTES = BARRIERS + 128;
};

template <int C>
__device__ __forceinline__ void attention_forward_groups(
    const bf16* qkv, int ld_qkv, bf16* out, int ld_out, float* lse, const int4* tiles, int T, int n_heads, int n_kv_heads, float scale,
    float softcap, int window) {
    using S = GroupSizes<C>;
    constexpr int TILE = S::TILE, KEYS = S::KEYS, N = KEYS / 8, STAGES = S::STAGES;
    using Queries = Tile<C, TILE>;
    using Keys = Tile<C, KEYS>;

    const Place place;
    const int4 tile = tiles[place.tile];
    const int first = tile.x, end = tile.z, head = place.head;
    const Sight sight{window};
    const int first_key = window == 0 ? tile.y : max(tile.y, first - window + 1);
    const int end_key = min(first + TILE, end);
    const int n_blocks = (end_key - first_key + KEYS - 1) / KEYS;
    const int last_key = first_key + (n_blocks - 1) * KEYS;  // where the last block begins

    const u32 queries_at = shared_address(attention_shared);
    const u32 keys_at = queries_at + Queries::BYTES, values_at = keys_at + STAGES * Keys::BYTES;
    // Of a stage: the keys are here, they are read, the values are here, they are read.
    const u32 barriers = queries_at + S::BARRIERS;
    const auto keys_here = [&](int stage) { return barriers + 32 * stage; };
    const auto keys_read = [&](int stage) { return barriers + 32 * stage + 8; };
    const auto values_here = [&](int stage) { return barriers + 32 * stage + 16; };
    const auto values_read = [&](int stage) { return barriers + 32 * stage + 24; };
    static_assert(STAGES <= 2, "room for barriers");
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(keys_here(stage), WARPGROUP);
            init_barrier(keys_read(stage), S::N * WARPGROUP / WARP);
            init_barrier(values_here(stage), WARPGROUP);
            init_barrier(values_read(stage), S::N * WARPGROUP / WARP);
        }
    }
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        leave_registers<S::FEW>();
        const bf16* keys = qkv + (n_heads + head / (n_heads / n_kv_heads)) * C;
        Copier copier;
        const auto load = [&](u32 to, const bf16* from, int block) {
            const int key = last_key - block * KEYS;
            Copier::load<Keys>(to + block % STAGES * Keys::BYTES, from + size_t(key) * ld_qkv, ld_qkv, end_key - key);
        };
        Copier::load<Queries>(queries_at, qkv + size_t(first) * ld_qkv + head * C, ld_qkv, end - first);
        load(keys_at, keys, 0);
        copier.announce(keys_here(0));  // the queries, too
#pragma unroll 1
        for (int block = 0; block < n_blocks; block++) {
            const int next = block + 1;
            if (next < n_blocks) {
                if (next >= STAGES) wait_barrier(keys_read(next % STAGES), next / STAGES - 1 & 1);
                load(keys_at, keys, next);
                copier.announce(keys_here(next % STAGES));
            }
            if (block >= STAGES) wait_barrier(values_read(block % STAGES), block / STAGES - 1 & 1);
            load(values_at, keys + n_kv_heads * C, block);
            copier.announce(values_here(block % STAGES));
        }
        copier.finish();
    } else {
        take_registers<S::MANY>();
        const int group = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % WARP;
        const int warp_row = (threadIdx.x - WARPGROUP) / WARP * 16;
        const u64 queries = rows_of<Queries>(queries_at + group * 64 * Queries::PITCH);

        // Scores are those before the scale, or capped ones; times `factor` they are logarithms to base 2.
        const float factor = softcap > 0.0f ? LOG2_E : scale * LOG2_E;
        const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
        float sums[1][C / 8][4], x[N][4];
        float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, rescale[2];
        u32 p[KEYS / 16][4];
        set_zero(sums);

        const auto begin_scores = [&](int block) {
            hold(x);
            begin_products();
            multiply_rows_group<C, Queries, Keys>(x, queries, rows_of<Keys>(keys_at + block % STAGES * Keys::BYTES));
        };
        const auto begin_sums = [&](int block) {
            hold(sums[0]);
            hold(p);
            begin_products();
            multiply_by_tile_group(sums[0], p, turned_rows_of<Keys>(values_at + block % STAGES * Keys::BYTES));
        };
        const auto softmax = [&](int block) {
            const int key = last_key - block * KEYS;
            if (softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) x[n][i] = softcap * cap_share(x[n][i], cap_slope);
                }
            }
            if (!sight.all(first + warp_row, 16, key, KEYS)) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (!sight.sees(first + warp_row + lane / 4 + i / 2 * 8, key + n * 8 + lane % 4 * 2 + i % 2)) x[n][i] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float new_top = top[half];
#pragma unroll
                for (int n = 0; n < N; n++) new_top = fmaxf(new_top, fmaxf(x[n][2 * half], x[n][2 * half + 1]));
                new_top = fmaxf(new_top, __shfl_xor_sync(ALL_LANES, new_top, 1));
                new_top = fmaxf(new_top, __shfl_xor_sync(ALL_LANES, new_top, 2));
                const float base = new_top == -INFINITY ? 0.0f : new_top * factor;  // nothing seen yet
                rescale[half] = exp2_fast(top[half] * factor - base);
                top[half] = new_top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        x[n][i] = exp2_fast(x[n][i] * factor - base);
                        sum += x[n][i];
                    }
                }
                total[half] = total[half] * rescale[half] + sum;
            }
        };
        const auto read = [&](u32 barrier) {
            if (lane == 0) arrive(barrier);
        };
        // Turns go round the groups; the last one gives the first.
        const auto await_turn = [&] { await(1 + group, 2 * WARPGROUP); };
        const auto pass_turn = [&] { announce(1 + (group + 1) % S::N, 2 * WARPGROUP); };
        if (group == S::N - 1) pass_turn();

        wait_barrier(keys_here(0), 0);
        await_turn();
        begin_scores(0);
        pass_turn();
        wait_for_products<0>();
        hold(x);
        read(keys_read(0));
        softmax(0);
        as_factor(p, x);
#pragma unroll 1
        for (int block = 1; block < n_blocks; block++) {
            const int stage = block % STAGES, before = (block - 1) % STAGES;
            wait_barrier(keys_here(stage), block / STAGES & 1);
                await_turn();
            begin_scores(block);
            wait_barrier(values_here(before), (block - 1) / STAGES & 1);
                begin_sums(block - 1);
            pass_turn();
            wait_for_products<1>();
            hold(x);
            read(keys_read(stage));
            softmax(block);
            hold(x);
            compute_before(total[0] + total[1], barriers + 64);
            wait_for_products<0>();
            hold(sums[0]);
            hold(p);
            read(values_read(before));
#pragma unroll
            for (int n = 0; n < C / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[0][n][i] *= rescale[i / 2];
            }
            as_factor(p, x);
        }
        wait_barrier(values_here((n_blocks - 1) % STAGES), (n_blocks - 1) / STAGES & 1);
        begin_sums(n_blocks - 1);

        float inverse[1][2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[half];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            inverse[0][half] = reciprocal_fast(sum);
            const int row = first + warp_row + half * 8 + lane / 4;
            if (lane % 4 == 0 && row < end) lse[size_t(head) * T + row] = (top[half] * factor + log2_fast(sum)) * LN_2;
        }
        wait_for_products<0>();
        hold(sums[0]);
        bf16* to = out + size_t(first + warp_row) * ld_out + head * C;
        await(1 + S::N + group, WARPGROUP);  // nobody reads these queries any more
        Queries::template store<1>(queries_at, warp_row, sums, inverse, to, ld_out, end - first - warp_row);
    }
}

#endif

// ---- Entry points

extern "C" __device__ int attention_forward_shapes[4][4] = {
#if HOPPER
#define SHAPE(C) {C, Sizes<C>::TILE, THREADS, Sizes<C>::BYTES},
#define GROUPS_SHAPE(C) {C, GroupSizes<C>::TILE, GroupSizes<C>::THREADS_ALL, GroupSizes<C>::BYTES},
    GROUPS_SHAPE(64) SHAPE(96) GROUPS_SHAPE(128) SHAPE(256)
#else
#define SHAPE(C) {C, Sizes<C>::TILE, THREADS, Sizes<C>::BYTES},
    FOR_HEAD_DIMS(SHAPE)
#endif
};

#define KERNEL(C, NAME, ALL_THREADS, BLOCKS)                                                                                          \
    extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS) attention_forward_##C(                                          \
        const bf16* __restrict__ qkv, int ld_qkv, bf16* __restrict__ out, int ld_out, float* __restrict__ lse,                        \
        const int4* __restrict__ tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window) {                 \
        NAME<C>(qkv, ld_qkv, out, ld_out, lse, tiles, T, n_heads, n_kv_heads, scale, softcap, window);                                \
    }
#define WARPS_KERNEL(C) KERNEL(C, attention_forward, THREADS, Shape<C>::BLOCKS)
#if HOPPER
#define GROUPS_KERNEL(C) KERNEL(C, attention_forward_groups, GroupSizes<C>::THREADS_ALL, 1)
GROUPS_KERNEL(64)
WARPS_KERNEL(96)
GROUPS_KERNEL(128)
WARPS_KERNEL(256)
#else
FOR_HEAD_DIMS(WARPS_KERNEL)
#endif
