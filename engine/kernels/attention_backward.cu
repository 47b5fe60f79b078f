// The gradient of causal attention of packed documents with grouped-query heads. Probabilities come back from the saved
// log-sum-exps: P = exp(S − lse), dV = Pᵀ·dO, dS = P∘(dO·Vᵀ − delta), dQ = scale·dS·K, dK = scale·dSᵀ·Q. Two kernels, one for the
// gradients of keys and values and one for that of queries, so that every sum has one order.
// Source: FlashAttention-2, Dao 2023 (arXiv:2307.08691).
//
// attention_backward_delta(out, ld_out, d_out, ld_d_out, delta, T, n_heads, C)
//   grid (T / 64 rounded up, query heads), 256 threads. delta (H, T) = the sum over a head's columns of out∘d_out.
// attention_backward_kv_C and attention_backward_q_C
//   (qkv, ld_qkv, d_out, ld_d_out, lse, delta, d_qkv, ld_d_qkv, tiles, T, n_heads, n_kv_heads, scale, softcap, window, partial)
//   grid (tiles, kv heads × P) and (tiles, query heads); tiles as in attention_forward.cu, of keys and of queries.
//   P parts of each group of query heads, P at most the heads of a group: with P = 1 `partial` is not used; else the kv kernel writes
//   what each part gives to partial (P, T, 2K·C), f32, and attention_backward_sum adds the parts. The q kernel ignores `partial`.
// attention_backward_sum(partial, P, d_qkv, ld_d_qkv, T, n_heads, n_kv_heads, C)
//   grid (T·2K·C / 8 / 256 rounded up), 256 threads.
//
//   C     kv: TILE  threads  dynamic shared memory     q: TILE  threads  dynamic shared memory
//   on sm_90a:
//   64        128   384      100480                       192   512      114816
//   128       128   384      198784                       128   384      196736
//   elsewhere, and 96 and 256 everywhere:
//   64        64    128      66560                        128   128      41984
//   96        64    128      57856                        128   128      62464
//   128       64    128      74240                        128   128      82944
//   256       32    128      69888                         64   128      98816
// The same numbers are the module's `attention_backward_kv_shapes` and `attention_backward_q_shapes`, int[4][4]: a row is
// {C, TILE, threads, bytes}.
#include "attention_hopper.cuh"

#define WARPS 4
#define THREADS (WARPS * WARP)

// ---- delta

#define DELTA_LANES 4

extern "C" __global__ void __launch_bounds__(256) attention_backward_delta(
    const bf16* __restrict__ out, int ld_out, const bf16* __restrict__ d_out, int ld_d_out, float* __restrict__ delta, int T,
    int n_heads, int C) {
    const int row = blockIdx.x * (blockDim.x / DELTA_LANES) + threadIdx.x / DELTA_LANES;
    const int head = blockIdx.y, lane = threadIdx.x % DELTA_LANES;
    float sum = 0.0f;
    if (row < T) {
        const bf16* a = out + size_t(row) * ld_out + head * C + lane * 8;
        const bf16* b = d_out + size_t(row) * ld_d_out + head * C + lane * 8;
#pragma unroll 4
        for (int i = 0; i < C; i += 8 * DELTA_LANES) {
            const uint4 x = *reinterpret_cast<const uint4*>(a + i), y = *reinterpret_cast<const uint4*>(b + i);
            sum += low_float(x.x) * low_float(y.x) + high_float(x.x) * high_float(y.x);
            sum += low_float(x.y) * low_float(y.y) + high_float(x.y) * high_float(y.y);
            sum += low_float(x.z) * low_float(y.z) + high_float(x.z) * high_float(y.z);
            sum += low_float(x.w) * low_float(y.w) + high_float(x.w) * high_float(y.w);
        }
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (lane == 0 && row < T) delta[size_t(head) * T + row] = sum;
}

// ---- Parts of a group

struct Part {
    int n, index, kv, first_head, n_heads;

    __device__ __forceinline__ Part(int place, int all_heads, int n_kv_heads) {
        const int group = all_heads / n_kv_heads;
        n = gridDim.y / n_kv_heads;
        index = place % n;
        kv = place / n;
        const int first = group * index / n;
        first_head = kv * group + first;
        n_heads = group * (index + 1) / n - first;
    }

    // A warp writes `n_rows` of 16·M rows of sums, times `factor`.
    template <int M, int N>
    __device__ __forceinline__ void store(
        float* partial, int row, int column, const float (&sums)[M][N][4], float factor, int T, int n_kv_heads, int n_rows) const {
        const int lane = threadIdx.x % WARP, width = 2 * n_kv_heads * N * 8;
        partial += (size_t(index) * T + row) * width + column + lane % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = m * 16 + half * 8 + lane / 4;
                if (r < n_rows) {
#pragma unroll
                    for (int i = 0; i < N; i++) {
                        *reinterpret_cast<float2*>(partial + size_t(r) * width + i * 8) =
                            make_float2(sums[m][i][2 * half] * factor, sums[m][i][2 * half + 1] * factor);
                    }
                }
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(256) attention_backward_sum(
    const float* __restrict__ partial, int n_parts, bf16* __restrict__ d_qkv, int ld_d_qkv, int T, int n_heads, int n_kv_heads, int C) {
    const u32 width = 2 * n_kv_heads * C, at = (blockIdx.x * 256 + threadIdx.x) * 8, row = at / width, column = at % width;
    if (row >= T) return;
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = a;
    partial += size_t(row) * width + column;
#pragma unroll 4
    for (int i = 0; i < n_parts; i++, partial += size_t(T) * width) {
        const float4 x = reinterpret_cast<const float4*>(partial)[0], y = reinterpret_cast<const float4*>(partial)[1];
        a.x += x.x, a.y += x.y, a.z += x.z, a.w += x.w;
        b.x += y.x, b.y += y.y, b.z += y.z, b.w += y.w;
    }
    *reinterpret_cast<uint4*>(d_qkv + size_t(row) * ld_d_qkv + n_heads * C + column) =
        make_uint4(to_bf16x2(a.x, a.y), to_bf16x2(a.z, a.w), to_bf16x2(b.x, b.y), to_bf16x2(b.z, b.w));
}

// ---- Keys and values

// A pair of warps has 16·M keys and meets QUERIES queries at a time, of which STAGES blocks are in shared memory. Of a pair, one warp
// makes P and sums dV, and the other makes dS, with what it gets of the first, and sums dK.
template <int C> struct KvShape;
template <> struct KvShape<64> { static constexpr int M = 2, QUERIES = 64, STAGES = 2, BLOCKS = 2; };
template <> struct KvShape<96> { static constexpr int M = 2, QUERIES = 32, STAGES = 2, BLOCKS = 2; };
template <> struct KvShape<128> { static constexpr int M = 2, QUERIES = 32, STAGES = 2, BLOCKS = 2; };
template <> struct KvShape<256> { static constexpr int M = 1, QUERIES = 32, STAGES = 1, BLOCKS = 2; };

template <int C> struct KvSizes : KvShape<C> {
    static constexpr int M = KvShape<C>::M, QUERIES = KvShape<C>::QUERIES;
    static constexpr int TILE = WARPS / 2 * 16 * M;
    static constexpr int EXCHANGE = WARPS / 2 * 16 * M * QUERIES * 4;
    static constexpr int STAGE = 2 * QUERIES * C * 2;
    static constexpr int ROWS = 2 * QUERIES * 4;  // lse and delta of a stage
    static constexpr int BYTES = 2 * TILE * C * 2 + KvShape<C>::STAGES * (STAGE + ROWS) + EXCHANGE;
};

template <int C>
__device__ __forceinline__ void attention_backward_kv(
    const bf16* qkv, int ld_qkv, const bf16* d_out, int ld_d_out, const float* lse, const float* delta, bf16* d_qkv, int ld_d_qkv,
    const int4* tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window, float* partial) {
    using S = KvSizes<C>;
    constexpr int M = S::M, TILE = S::TILE, QUERIES = S::QUERIES, N = QUERIES / 8, STAGES = S::STAGES;
    using Keys = Tile<C, TILE>;
    using Queries = Tile<C, QUERIES>;

    const Place place;
    const int4 tile = tiles[place.tile];
    const int first = tile.x, end = tile.z;
    Part part(place.head, n_heads, n_kv_heads);
    const Sight sight{window};
    // Queries that see any of the keys.
    const int end_query = window == 0 ? end : min(end, min(first + TILE, end) - 1 + min(window, end));
    const int n_blocks = (end_query - first + QUERIES - 1) / QUERIES;
    const int n_steps = n_blocks * part.n_heads;

    const u32 keys_at = shared_address(attention_shared), values_at = keys_at + Keys::BYTES;
    const u32 stages_at = values_at + Keys::BYTES;
    unsigned char* after_stages = attention_shared + 2 * Keys::BYTES + STAGES * S::STAGE;
    float4* exchange = reinterpret_cast<float4*>(after_stages);
    float* rows = reinterpret_cast<float*>(after_stages + S::EXCHANGE);

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, pair = warp / 2;
    const bool of_keys = warp % 2 == 1;  // the warp that sums dK
    const int pair_row = pair * 16 * M;

    const auto load = [&](int step) {
        const int head = part.first_head + step / n_blocks, stage = step % STAGES;
        const int query = first + step % n_blocks * QUERIES, n_rows = end_query - query;
        const u32 at = stages_at + stage * S::STAGE;
        Queries::template load<THREADS>(at, qkv + size_t(query) * ld_qkv + head * C, ld_qkv, n_rows);
        Queries::template load<THREADS>(at + Queries::BYTES, d_out + size_t(query) * ld_d_out + head * C, ld_d_out, n_rows);
        if (threadIdx.x < 2 * QUERIES) {
            const int row = threadIdx.x % QUERIES;
            const float* from = (threadIdx.x < QUERIES ? lse : delta) + size_t(head) * T + query + row;
            copy_4(shared_address(rows + stage * 2 * QUERIES + threadIdx.x), from, row < n_rows);
        }
    };

    const bf16* keys = qkv + size_t(first) * ld_qkv + (n_heads + part.kv) * C;
    Keys::template load<THREADS>(keys_at, keys, ld_qkv, end - first);
    Keys::template load<THREADS>(values_at, keys + n_kv_heads * C, ld_qkv, end - first);
    load(0);
    commit_copies();

    const float factor = softcap > 0.0f ? LOG2_E : scale * LOG2_E;
    const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
    float sums[M][C / 8][4];
    set_zero(sums);

    // Rows past the end are zeros, as are their lse and delta, and add nothing.
#pragma unroll 1
    for (int step = 0; step < n_steps; step++) {
        wait_for_copies();
        __syncthreads();  // this block is here, and nobody reads the one before
        if (STAGES == 2 && step + 1 < n_steps) {
            load(step + 1);
            commit_copies();
        }
        const int query = first + step % n_blocks * QUERIES;
        const u32 queries_at = stages_at + step % STAGES * S::STAGE, d_out_at = queries_at + Queries::BYTES;
        const float* row_lse = rows + step % STAGES * 2 * QUERIES;
        const float* row_delta = row_lse + QUERIES;

        // (keys, queries)
        float x[M][N][4];
        set_zero(x);
        multiply_rows<C, TILE, QUERIES>(x, of_keys ? values_at : keys_at, pair_row, of_keys ? d_out_at : queries_at);

        float4* shares = exchange + pair * M * N * WARP + lane;
        if (!of_keys) {
            const bool all_seen = sight.all(query, QUERIES, first + pair_row, 16 * M);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 base = *reinterpret_cast<const float2*>(row_lse + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    float slope[4] = {1.0f, 1.0f, 1.0f, 1.0f};
                    if (softcap > 0.0f) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const float share = cap_share(x[m][n][i], cap_slope);
                            x[m][n][i] = softcap * share;
                            slope[i] = 1.0f - share * share;
                        }
                    }
                    if (!all_seen) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const int key = first + pair_row + m * 16 + lane / 4 + i / 2 * 8;
                            if (!sight.sees(query + n * 8 + lane % 4 * 2 + i % 2, key)) x[m][n][i] = -INFINITY;
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++) x[m][n][i] = exp2_fast(x[m][n][i] * factor - (i % 2 ? base.y : base.x) * LOG2_E);
                    shares[(m * N + n) * WARP] = make_float4(
                        x[m][n][0] * slope[0], x[m][n][1] * slope[1], x[m][n][2] * slope[2], x[m][n][3] * slope[3]);
                }
            }
            announce(1 + pair, 2 * WARP);
        } else {
            await(1 + pair, 2 * WARP);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 mean = *reinterpret_cast<const float2*>(row_delta + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    const float4 share = shares[(m * N + n) * WARP];
                    x[m][n][0] = share.x * (x[m][n][0] - mean.x);
                    x[m][n][1] = share.y * (x[m][n][1] - mean.y);
                    x[m][n][2] = share.z * (x[m][n][2] - mean.x);
                    x[m][n][3] = share.w * (x[m][n][3] - mean.y);
                }
            }
        }
        multiply_by_tile<C, QUERIES>(sums, x, of_keys ? queries_at : d_out_at);

        if (STAGES == 1 && step + 1 < n_steps) {
            __syncthreads();
            load(step + 1);
            commit_copies();
        }
    }

    const float factor_of_sums = of_keys ? scale : 1.0f;
    part = Part(Place::again().head, n_heads, n_kv_heads);  // rather than registers kept
    const int row = first + pair_row, column = (part.kv + (of_keys ? 0 : n_kv_heads)) * C;
    if (part.n > 1) {
        part.store<M>(partial, row, column, sums, factor_of_sums, T, n_kv_heads, end - row);
        return;
    }
    // Each warp's sums go through the rows that it alone has read.
    float times[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) times[m][0] = times[m][1] = factor_of_sums;
    bf16* to = d_qkv + size_t(row) * ld_d_qkv + n_heads * C + column;
    Keys::template store<M>(of_keys ? values_at : keys_at, pair_row, sums, times, to, ld_d_qkv, end - row);
}

// ---- Queries

// A warp has 16·M queries and meets KEYS keys at a time.
template <int C> struct QShape;
template <> struct QShape<64> { static constexpr int M = 2, KEYS = 32, BLOCKS = 2; };
template <> struct QShape<96> { static constexpr int M = 2, KEYS = 32, BLOCKS = 2; };
template <> struct QShape<128> { static constexpr int M = 2, KEYS = 32, BLOCKS = 2; };
template <> struct QShape<256> { static constexpr int M = 1, KEYS = 32, BLOCKS = 2; };

template <int C> struct QSizes : QShape<C> {
    static constexpr int TILE = WARPS * 16 * QShape<C>::M;
    static constexpr int BYTES = 2 * (TILE + QShape<C>::KEYS) * C * 2 + 2 * TILE * 4;
};

template <int C>
__device__ __forceinline__ void attention_backward_q(
    const bf16* qkv, int ld_qkv, const bf16* d_out, int ld_d_out, const float* lse, const float* delta, bf16* d_qkv, int ld_d_qkv,
    const int4* tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window, float*) {
    using S = QSizes<C>;
    constexpr int M = S::M, TILE = S::TILE, KEYS = S::KEYS, N = KEYS / 8;
    using Queries = Tile<C, TILE>;
    using Keys = Tile<C, KEYS>;

    const Place place;
    const int4 tile = tiles[place.tile];
    const int first = tile.x, end = tile.z, head = place.head;
    const int kv = head / (n_heads / n_kv_heads);
    const Sight sight{window};
    const int first_key = window == 0 ? tile.y : max(tile.y, first - window + 1);
    const int end_key = min(first + TILE, end);
    const bf16* keys = qkv + (n_heads + kv) * C;
    const bf16* values = keys + n_kv_heads * C;

    const u32 queries_at = shared_address(attention_shared), d_out_at = queries_at + Queries::BYTES;
    const u32 keys_at = d_out_at + Queries::BYTES, values_at = keys_at + Keys::BYTES;
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16 * M;

    Queries::template load<THREADS>(d_out_at, d_out + size_t(first) * ld_d_out + head * C, ld_d_out, end - first);
    Keys::template load<THREADS>(values_at, values + size_t(first_key) * ld_qkv, ld_qkv, end_key - first_key);
    Queries::template load<THREADS>(queries_at, qkv + size_t(first) * ld_qkv + head * C, ld_qkv, end - first);
    Keys::template load<THREADS>(keys_at, keys + size_t(first_key) * ld_qkv, ld_qkv, end_key - first_key);
    commit_copies();

    const float factor = softcap > 0.0f ? LOG2_E : scale * LOG2_E;
    const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
    // Of each row: lse to base 2, delta.
    float* rows = reinterpret_cast<float*>(attention_shared + 2 * (Queries::BYTES + Keys::BYTES));
    if (threadIdx.x < TILE) {
        const int row = first + threadIdx.x;
        rows[threadIdx.x] = row < end ? lse[size_t(head) * T + row] * LOG2_E : 0.0f;
        rows[TILE + threadIdx.x] = row < end ? delta[size_t(head) * T + row] : 0.0f;
    }
    rows += warp_row + lane / 4;
    float sums[M][C / 8][4];
    set_zero(sums);

#pragma unroll 1
    for (int key = first_key; key < end_key; key += KEYS) {
        wait_for_copies();
        __syncthreads();  // the values are here, and nobody reads the keys before
        if (key > first_key) {
            Keys::template load<THREADS>(keys_at, keys + size_t(key) * ld_qkv, ld_qkv, end_key - key);
            commit_copies();
        }
        // dO·Vᵀ − delta
        float d_p[M][N][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) d_p[m][n][i] = -rows[TILE + m * 16 + i / 2 * 8];
            }
        }
        multiply_rows<C, TILE, KEYS>(d_p, d_out_at, warp_row, values_at);

        wait_for_copies();
        __syncthreads();  // the keys are here, and nobody reads the values any more
        if (key + KEYS < end_key) {
            Keys::template load<THREADS>(values_at, values + size_t(key + KEYS) * ld_qkv, ld_qkv, end_key - key - KEYS);
            commit_copies();
        }
        float x[M][N][4];
        set_zero(x);
        multiply_rows<C, TILE, KEYS>(x, queries_at, warp_row, keys_at);

        const bool all_seen = sight.all(first + warp_row, 16 * M, key, KEYS);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (softcap > 0.0f) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float share = cap_share(x[m][n][i], cap_slope);
                        x[m][n][i] = softcap * share;
                        d_p[m][n][i] *= 1.0f - share * share;
                    }
                }
                if (!all_seen) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int query = first + warp_row + m * 16 + lane / 4 + i / 2 * 8;
                        if (!sight.sees(query, key + n * 8 + lane % 4 * 2 + i % 2)) x[m][n][i] = -INFINITY;
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; i++) d_p[m][n][i] *= exp2_fast(x[m][n][i] * factor - rows[m * 16 + i / 2 * 8]);
            }
        }
        multiply_by_tile<C, KEYS>(sums, d_p, keys_at);
    }

    float times[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) times[m][0] = times[m][1] = scale;
    bf16* to = d_qkv + size_t(first + warp_row) * ld_d_qkv + head * C;
    Queries::template store<M>(queries_at, warp_row, sums, times, to, ld_d_qkv, end - first - warp_row);
}

#if HOPPER

// ---- With warpgroups, C = 64 and 128. Source: FlashAttention-3, Shah et al. 2024 (arXiv:2407.08608).
//
// The first warpgroup copies; each other one has 64 keys, or 64 queries, and meets 64 of the others at a time. What a block's dS gives
// is summed while the next block's scores are computed, so that nothing but dS lives from block to block.

template <int C> struct KvGroups;
template <> struct KvGroups<64> { static constexpr bool KEPT = true; };    // keys and values are kept in registers
template <> struct KvGroups<128> { static constexpr bool KEPT = false; };

template <int C> struct KvGroupSizes : KvGroups<C> {
    static constexpr int N = 2, QUERIES = 64, STAGES = 4, FEW = 24, MANY = 240;
    static constexpr int TILE = 64 * N, THREADS_ALL = WARPGROUP * (N + 1);
    static constexpr int STAGE = 2 * QUERIES * C * 2, ROWS = 2 * QUERIES * 4;
    static constexpr int BARRIERS = 2 * TILE * C * 2 + STAGES * (STAGE + ROWS);
    static constexpr int BYTES = BARRIERS + 128;
};

template <int C>
__device__ __forceinline__ void attention_backward_kv_groups(
    const bf16* qkv, int ld_qkv, const bf16* d_out, int ld_d_out, const float* lse, const float* delta, bf16* d_qkv, int ld_d_qkv,
    const int4* tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window, float* partial) {
    using S = KvGroupSizes<C>;
    constexpr int TILE = S::TILE, QUERIES = S::QUERIES, N = QUERIES / 8, STAGES = S::STAGES;
    using Keys = Tile<C, TILE>;
    using Queries = Tile<C, QUERIES>;

    const Place place;
    const int4 tile = tiles[place.tile];
    const int first = tile.x, end = tile.z;
    Part part(place.head, n_heads, n_kv_heads);
    // Queries that see any of the keys.
    const int end_query = window == 0 ? end : min(end, min(first + TILE, end) - 1 + min(window, end));
    const int n_steps = (end_query - first + QUERIES - 1) / QUERIES * part.n_heads;

    const u32 keys_at = shared_address(attention_shared), values_at = keys_at + Keys::BYTES, stages_at = values_at + Keys::BYTES;
    constexpr int ROWS_FROM = 2 * Keys::BYTES + STAGES * S::STAGE;
    // Of a stage: it is here, it is read.
    const u32 barriers = keys_at + S::BARRIERS;
    const auto here = [&](int stage) { return barriers + 16 * stage; };
    const auto read = [&](int stage) { return barriers + 16 * stage + 8; };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(here(stage), WARPGROUP);
            init_barrier(read(stage), S::N * WARPGROUP / WARP);
        }
    }
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        leave_registers<S::FEW>();
        Copier copier;
        const bf16* keys = qkv + size_t(first) * ld_qkv + (n_heads + part.kv) * C;
        Copier::load<Keys>(keys_at, keys, ld_qkv, end - first);
        Copier::load<Keys>(values_at, keys + n_kv_heads * C, ld_qkv, end - first);
        int head = part.first_head, query = first;
#pragma unroll 1
        for (int step = 0; step < n_steps; step++) {
            const int stage = step % STAGES, n_rows = end_query - query;
            if (step >= STAGES) wait_barrier(read(stage), step / STAGES - 1 & 1);
            const u32 at = stages_at + stage * S::STAGE;
            Copier::load<Queries>(at, qkv + size_t(query) * ld_qkv + head * C, ld_qkv, n_rows);
            Copier::load<Queries>(at + Queries::BYTES, d_out + size_t(query) * ld_d_out + head * C, ld_d_out, n_rows);
            const int row = threadIdx.x % QUERIES;
            copy_4(
                keys_at + ROWS_FROM + stage * S::ROWS + threadIdx.x * 4,
                (threadIdx.x < QUERIES ? lse : delta) + size_t(head) * T + query + row, row < n_rows);
            copier.announce(here(stage));
            query += QUERIES;
            if (query >= end_query) query = first, head++;
        }
        copier.finish();
    } else {
        take_registers<S::MANY>();
        const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0) - WARPGROUP / WARP;  // known to be the same in all lanes
        const int group = warp / (WARPGROUP / WARP), warp_row = warp * 16, lane = threadIdx.x % WARP;
        const Sight sight{window};
        const float factor = (softcap > 0.0f ? softcap : scale) * LOG2_E;
        const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
        float d_keys[1][C / 8][4], d_values[1][C / 8][4], x[N][4], d_p[N][4];
        u32 p[N / 2][4];  // then dS
        u32 keys[S::KEPT ? C / 16 : 1][4], values[S::KEPT ? C / 16 : 1][4];
        set_zero(d_keys);
        set_zero(d_values);

        const auto begin_d_keys = [&](int step) {
            hold(p);
            begin_products();
            multiply_by_tile_group(d_keys[0], p, turned_rows_of<Queries>(stages_at + step % STAGES * S::STAGE));
        };
        int query = first;
        // Rows past the end are zeros, as are their lse and delta, and add nothing.
        const auto meet = [&](int step, bool is_first) {
            const int stage = step % STAGES;
            const u32 at = stages_at + stage * S::STAGE;
            const u32 rows = keys_at + ROWS_FROM + stage * S::ROWS + lane % 4 * 8;  // lse, then delta
            hold(x);
            hold(d_p);
            if (!is_first) begin_d_keys(step - 1);
            wait_barrier(here(stage), step / STAGES & 1);
            begin_products();
            if constexpr (S::KEPT) {
                multiply_rows_group<Queries>(x, keys, rows_of<Queries>(at));
                multiply_rows_group<Queries>(d_p, values, rows_of<Queries>(at + Queries::BYTES));
            } else {
                u64 own = rows_of<Keys>(keys_at + group * 64 * Keys::PITCH);
                asm volatile("" : "+l"(own));  // or descriptors of all channels take registers for good
                multiply_rows_group<C, Keys, Queries>(x, own, rows_of<Queries>(at));
                multiply_rows_group<C, Keys, Queries>(d_p, own + (Keys::BYTES >> 4), rows_of<Queries>(at + Queries::BYTES));
            }
            wait_for_products<1>();
            hold(x);
            hold(p);
            if (!is_first && lane == 0) arrive(read((step - 1) % STAGES));

            if (softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) x[n][i] = cap_share(x[n][i], cap_slope);
                }
            }
            if (!sight.all(query, QUERIES, first + warp_row, 16)) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (!sight.sees(query + n * 8 + lane % 4 * 2 + i % 2, first + warp_row + lane / 4 + i / 2 * 8)) x[n][i] = -INFINITY;
                    }
                }
            }
            if (softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const float2 base = load_shared_8(rows + n * 32);
                    float share[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        share[i] = exp2_fast(x[n][i] * factor - (i % 2 ? base.y : base.x) * LOG2_E);
                        x[n][i] = share[i] * fmaxf(1.0f - x[n][i] * x[n][i], 0.0f);
                    }
                    p[n / 2][n % 2 * 2] = to_bf16x2(share[0], share[1]);
                    p[n / 2][n % 2 * 2 + 1] = to_bf16x2(share[2], share[3]);
                }
            } else {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const float2 base = load_shared_8(rows + n * 32);
#pragma unroll
                    for (int i = 0; i < 4; i++) x[n][i] = exp2_fast(x[n][i] * factor - (i % 2 ? base.y : base.x) * LOG2_E);
                    p[n / 2][n % 2 * 2] = to_bf16x2(x[n][0], x[n][1]);
                    p[n / 2][n % 2 * 2 + 1] = to_bf16x2(x[n][2], x[n][3]);
                }
            }
            hold(p);
            begin_products();
            multiply_by_tile_group(d_values[0], p, turned_rows_of<Queries>(at + Queries::BYTES));

            wait_for_products<S::KEPT ? 1 : 0>();  // without registers to spare, no product runs on
            hold(d_p);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 mean = load_shared_8(rows + QUERIES * 4 + n * 32);
                d_p[n][0] = x[n][0] * (d_p[n][0] - mean.x);
                d_p[n][1] = x[n][1] * (d_p[n][1] - mean.y);
                d_p[n][2] = x[n][2] * (d_p[n][2] - mean.x);
                d_p[n][3] = x[n][3] * (d_p[n][3] - mean.y);
            }
            hold(d_p);
            wait_for_products<0>();
            hold(p);
            as_factor(p, d_p);
            query += QUERIES;
            if (query >= end_query) query = first;
        };

        if constexpr (S::KEPT) {
            wait_barrier(here(0), 0);
            load_factor<Keys>(keys, keys_at, warp_row);
            load_factor<Keys>(values, values_at, warp_row);
            hold(keys);
            hold(values);
        }
        meet(0, true);
#pragma unroll 1
        for (int step = 1; step < n_steps; step++) meet(step, false);
        begin_d_keys(n_steps - 1);
        wait_for_products<0>();
        hold(d_keys[0]);
        hold(d_values[0]);

        part = Part(Place::again().head, n_heads, n_kv_heads);  // rather than registers kept
        const int row = first + warp_row, column = part.kv * C, n_rows = end - row;
        if (part.n > 1) {
            part.store<1>(partial, row, column, d_keys, scale, T, n_kv_heads, n_rows);
            part.store<1>(partial, row, column + n_kv_heads * C, d_values, 1.0f, T, n_kv_heads, n_rows);
        } else {
            const float scales[1][2] = {{scale, scale}}, ones[1][2] = {{1.0f, 1.0f}};
            bf16* to = d_qkv + size_t(row) * ld_d_qkv + n_heads * C + column;
            await(1 + group, WARPGROUP);  // nobody reads these keys and values any more
            Keys::template store<1>(keys_at, warp_row, d_keys, scales, to, ld_d_qkv, n_rows);
            Keys::template store<1>(values_at, warp_row, d_values, ones, to + n_kv_heads * C, ld_d_qkv, n_rows);
        }
    }
}

template <int C> struct QGroups;
template <> struct QGroups<64> { static constexpr int N = 3, FEW = 32, MANY = 160; static constexpr bool KEPT = false; };
template <> struct QGroups<128> { static constexpr int N = 2, FEW = 24, MANY = 240; static constexpr bool KEPT = true; };  // dO, too

template <int C> struct QGroupSizes : QGroups<C> {
    static constexpr int KEYS = 64, STAGES = 4;
    static constexpr int TILE = 64 * QGroups<C>::N, THREADS_ALL = WARPGROUP * (QGroups<C>::N + 1);
    static constexpr int BARRIERS = 2 * (TILE + STAGES * KEYS) * C * 2;
    static constexpr int BYTES = BARRIERS + 128;
};

template <int C>
__device__ __forceinline__ void attention_backward_q_groups(
    const bf16* qkv, int ld_qkv, const bf16* d_out, int ld_d_out, const float* lse, const float* delta, bf16* d_qkv, int ld_d_qkv,
    const int4* tiles, int T, int n_heads, int n_kv_heads, float scale, float softcap, int window, float*) {
    using S = QGroupSizes<C>;
    constexpr int TILE = S::TILE, KEYS = S::KEYS, N = KEYS / 8, STAGES = S::STAGES;
    using Queries = Tile<C, TILE>;
    using Keys = Tile<C, KEYS>;

    const Place place;
    const int4 tile = tiles[place.tile];
    const int first = tile.x, end = tile.z, head = place.head;
    const int first_key = window == 0 ? tile.y : max(tile.y, first - window + 1);
    const int end_key = min(first + TILE, end);
    const int n_blocks = (end_key - first_key + KEYS - 1) / KEYS;

    const u32 queries_at = shared_address(attention_shared), d_out_at = queries_at + Queries::BYTES;
    const u32 stages_at = d_out_at + Queries::BYTES;  // of keys and values
    const u32 barriers = queries_at + S::BARRIERS;
    const auto here = [&](int stage) { return barriers + 16 * stage; };
    const auto read = [&](int stage) { return barriers + 16 * stage + 8; };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(here(stage), WARPGROUP);
            init_barrier(read(stage), S::N * WARPGROUP / WARP);
        }
    }
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        leave_registers<S::FEW>();
        Copier copier;
        const bf16* keys = qkv + size_t(first_key) * ld_qkv + (n_heads + head / (n_heads / n_kv_heads)) * C;
        int n_rows = end_key - first_key;
#pragma unroll 1
        for (int block = 0; block < n_blocks; block++) {
            const int stage = block % STAGES;
            if (block >= STAGES) wait_barrier(read(stage), block / STAGES - 1 & 1);
            const u32 at = stages_at + stage * 2 * Keys::BYTES;
            Copier::load<Keys>(at, keys, ld_qkv, n_rows);
            Copier::load<Keys>(at + Keys::BYTES, keys + n_kv_heads * C, ld_qkv, n_rows);
            copier.announce(here(stage));
            keys += size_t(KEYS) * ld_qkv;
            n_rows -= KEYS;
        }
        copier.finish();
    } else {
        take_registers<S::MANY>();
        const int lane = threadIdx.x % WARP, warp_row = (threadIdx.x - WARPGROUP) / WARP * 16;
        const Sight sight{window};
        // What the group's queries see ends before the tile's does.
        const int end_block = (min(end_key, first + warp_row / 64 * 64 + 64) - first_key + KEYS - 1) / KEYS;
        const int row = first + warp_row;

        u32 queries[C / 16][4], d_outs[S::KEPT ? C / 16 : 1][4];
        load_rows<Queries>(queries_at, warp_row, qkv + size_t(row) * ld_qkv + head * C, ld_qkv, end - row);
        load_rows<Queries>(d_out_at, warp_row, d_out + size_t(row) * ld_d_out + head * C, ld_d_out, end - row);
        float base[2], mean[2];  // lse to base 2, delta
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + lane / 4 + half * 8;
            base[half] = r < end ? lse[size_t(head) * T + r] * LOG2_E : 0.0f;
            mean[half] = r < end ? delta[size_t(head) * T + r] : 0.0f;
        }
        wait_for_copies();
        __syncwarp();
        load_factor<Queries>(queries, queries_at, warp_row);
        if constexpr (S::KEPT) {
            load_factor<Queries>(d_outs, d_out_at, warp_row);
        } else {
            fence_for_products();
            await(1 + warp_row / 64, WARPGROUP);
        }

        const float factor = (softcap > 0.0f ? softcap : scale) * LOG2_E;
        const float cap_slope = softcap > 0.0f ? 2.0f * LOG2_E * scale * reciprocal_fast(softcap) : 0.0f;
        float sums[1][C / 8][4], x[N][4], d_p[N][4];
        u32 d_s[N / 2][4];
        set_zero(sums);
        hold(queries);
        hold(d_outs);

        const auto begin_sums = [&](int block) {
            hold(d_s);
            begin_products();
            multiply_by_tile_group(sums[0], d_s, turned_rows_of<Keys>(stages_at + block % STAGES * 2 * Keys::BYTES));
        };
        const auto meet = [&](int block, bool is_first) {
            const int key = first_key + block * KEYS, stage = block % STAGES;
            const u32 at = stages_at + stage * 2 * Keys::BYTES;
            hold(x);
            hold(d_p);
            if (!is_first) begin_sums(block - 1);
            wait_barrier(here(stage), block / STAGES & 1);
            begin_products();
            multiply_rows_group<Keys>(x, queries, rows_of<Keys>(at));
            if constexpr (S::KEPT) {
                multiply_rows_group<Keys>(d_p, d_outs, rows_of<Keys>(at + Keys::BYTES));
            } else {
                const u64 own = rows_of<Queries>(d_out_at + warp_row / 64 * 64 * Queries::PITCH);
                multiply_rows_group<C, Queries, Keys>(d_p, own, rows_of<Keys>(at + Keys::BYTES));
            }
            wait_for_products<1>();
            hold(x);
            hold(d_s);
            if (!is_first && lane == 0) arrive(read((block - 1) % STAGES));

            if (softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) x[n][i] = cap_share(x[n][i], cap_slope);
                }
            }
            if (!sight.all(row, 16, key, KEYS)) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (!sight.sees(row + lane / 4 + i / 2 * 8, key + n * 8 + lane % 4 * 2 + i % 2)) x[n][i] = -INFINITY;
                    }
                }
            }
            u32 bits = 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float share = exp2_fast(x[n][i] * factor - base[i / 2]);
                    x[n][i] = softcap > 0.0f ? share * fmaxf(1.0f - x[n][i] * x[n][i], 0.0f) : share;
                    bits |= __float_as_uint(x[n][i]);
                }
            }
            hold(x);
            compute_before(__uint_as_float(bits), barriers + 120);
            wait_for_products<0>();
            hold(d_p);
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    d_s[n / 2][n % 2 * 2 + half] = to_bf16x2(
                        x[n][2 * half] * (d_p[n][2 * half] - mean[half]), x[n][2 * half + 1] * (d_p[n][2 * half + 1] - mean[half]));
                }
            }
        };

        meet(0, true);
#pragma unroll 1
        for (int block = 1; block < end_block; block++) meet(block, false);
        begin_sums(end_block - 1);
        wait_for_products<0>();
        hold(sums[0]);
#pragma unroll 1
        for (int block = end_block; block < n_blocks; block++) {
            if (lane == 0) arrive(read((block - 1) % STAGES));
            wait_barrier(here(block % STAGES), block / STAGES & 1);
        }
        const float scales[1][2] = {{scale, scale}};
        Queries::template store<1>(
            queries_at, warp_row, sums, scales, d_qkv + size_t(row) * ld_d_qkv + head * C, ld_d_qkv, end - row);
    }
}

#endif

// ---- Entry points

extern "C" __device__ int attention_backward_kv_shapes[4][4] = {
#if HOPPER
#define SHAPE(C) {C, KvSizes<C>::TILE, THREADS, KvSizes<C>::BYTES},
#define GROUPS_SHAPE(C) {C, KvGroupSizes<C>::TILE, KvGroupSizes<C>::THREADS_ALL, KvGroupSizes<C>::BYTES},
    GROUPS_SHAPE(64) SHAPE(96) GROUPS_SHAPE(128) SHAPE(256)
#undef GROUPS_SHAPE
#else
#define SHAPE(C) {C, KvSizes<C>::TILE, THREADS, KvSizes<C>::BYTES},
    FOR_HEAD_DIMS(SHAPE)
#endif
#undef SHAPE
};

extern "C" __device__ int attention_backward_q_shapes[4][4] = {
#if HOPPER
#define SHAPE(C) {C, QSizes<C>::TILE, THREADS, QSizes<C>::BYTES},
#define GROUPS_SHAPE(C) {C, QGroupSizes<C>::TILE, QGroupSizes<C>::THREADS_ALL, QGroupSizes<C>::BYTES},
    GROUPS_SHAPE(64) SHAPE(96) GROUPS_SHAPE(128) SHAPE(256)
#undef GROUPS_SHAPE
#else
#define SHAPE(C) {C, QSizes<C>::TILE, THREADS, QSizes<C>::BYTES},
    FOR_HEAD_DIMS(SHAPE)
#endif
#undef SHAPE
};

#define KERNEL(NAME, C, BODY, ALL_THREADS, BLOCKS)                                                                                    \
    extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS) NAME##_##C(                                                     \
        const bf16* __restrict__ qkv, int ld_qkv, const bf16* __restrict__ d_out, int ld_d_out, const float* __restrict__ lse,        \
        const float* __restrict__ delta, bf16* __restrict__ d_qkv, int ld_d_qkv, const int4* __restrict__ tiles, int T, int n_heads,  \
        int n_kv_heads, float scale, float softcap, int window, float* __restrict__ partial) {                                        \
        BODY<C>(                                                                                                                      \
            qkv, ld_qkv, d_out, ld_d_out, lse, delta, d_qkv, ld_d_qkv, tiles, T, n_heads, n_kv_heads, scale, softcap, window,         \
            partial);                                                                                                                 \
    }
#define WARPS_KERNEL(C)                                                                                 \
    KERNEL(attention_backward_kv, C, attention_backward_kv, THREADS, KvShape<C>::BLOCKS)                \
    KERNEL(attention_backward_q, C, attention_backward_q, THREADS, QShape<C>::BLOCKS)
#if HOPPER
#define GROUPS_KERNEL(C)                                                                                \
    KERNEL(attention_backward_kv, C, attention_backward_kv_groups, KvGroupSizes<C>::THREADS_ALL, 1)     \
    KERNEL(attention_backward_q, C, attention_backward_q_groups, QGroupSizes<C>::THREADS_ALL, 1)
GROUPS_KERNEL(64)
WARPS_KERNEL(96)
GROUPS_KERNEL(128)
WARPS_KERNEL(256)
#else
FOR_HEAD_DIMS(WARPS_KERNEL)
#endif
