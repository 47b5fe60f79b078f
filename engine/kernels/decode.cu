// What a step of generation runs, one row a sequence: products with few rows, attention to paged keys and values, the next token.
//
// Keys and values of a layer lie in pages, (n_pages, K, 64, C) each; `page_table` (n_sequences, max_pages) says which page has a
// sequence's tokens 64·i to 64·i + 63. Row i is the token of sequence `row_sequence[i]` at position `row_position[i]`; a row whose
// sequence is below 0 is padding. No row's result depends on the other rows, nor on how many there are.
#include "attention.cuh"

#define PAGE 64

// ---- Keys and values into their pages.

// One block for a row. C is a multiple of 8.
extern "C" __global__ void kv_append(const bf16* __restrict__ qkv, int ld, const int* __restrict__ row_sequence,
                                     const int* __restrict__ row_position, const int* __restrict__ page_table, int max_pages,
                                     bf16* __restrict__ k_pages, bf16* __restrict__ v_pages, int n_rows, int n_heads,
                                     int n_kv_heads, int C) {
    wait_for_kernels_before();
    const int row = blockIdx.x;
    if (row >= n_rows) return;
    const int sequence = row_sequence[row];
    if (sequence < 0) return;
    const int position = row_position[row];
    const size_t page = page_table[size_t(sequence) * max_pages + position / PAGE];
    const uint4* from = reinterpret_cast<const uint4*>(qkv + size_t(row) * ld + n_heads * C);
    const int of_head = C / 8, of_row = n_kv_heads * of_head;
    for (int i = threadIdx.x; i < 2 * of_row; i += blockDim.x) {
        const int piece = i < of_row ? i : i - of_row, head = piece / of_head;
        bf16* to = (i < of_row ? k_pages : v_pages) + ((page * n_kv_heads + head) * PAGE + position % PAGE) * C;
        reinterpret_cast<uint4*>(to)[piece - head * of_head] = from[i];
    }
}

// ---- Products with few rows.

// 16 bytes, loaded at this place and no other.
__device__ __forceinline__ uint4 load_here(const void* from) {
    uint4 x;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}

#define SKINNY_WARPS 8
#define SKINNY_THREADS (SKINNY_WARPS * WARP)
#define SKINNY_STEP 64        // columns of W that a warp takes at a time
#define SKINNY_RING 12288     // bytes of a warp's ring

// y (M, N) = x (M, K) · W (N, K)ᵀ + bias, M ≤ 8·GROUPS, for the 16·TILES rows of W from 16·TILES·blockIdx.x on.
// Warp i sums the steps i, i + 8, … of K, then the warps' sums are added from first to last: neither GROUPS nor TILES changes that.
// Both factors have their columns permuted alike within 32: a thread's 16 bytes of a row are its share of two products.
template <int GROUPS, int TILES>
__device__ __forceinline__ void skinny_linear(const bf16* __restrict__ x, int ld_x, const bf16* __restrict__ w, int ld_w,
                                              const void* __restrict__ bias, void* y, int ld_y, int mode, int M, int N, int K) {
    constexpr int ROWS = 16 * TILES, STAGE = ROWS * 2 * SKINNY_STEP, STAGES = SKINNY_RING / STAGE, PITCH = ROWS + 4;
    constexpr int HALVES = GROUPS > 4 && TILES == 1 ? 1 : 2;  // of a step, whose rows of x are loaded together
    static_assert(SKINNY_RING % STAGE == 0, "whole stages");
    static_assert(SKINNY_WARPS * 8 * GROUPS * PITCH * 4 <= SKINNY_WARPS * SKINNY_RING, "sums fit the rings");
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int first = blockIdx.x * ROWS;
    float* sums = reinterpret_cast<float*>(attention_shared);
    const u32 ring = shared_address(attention_shared) + warp * SKINNY_RING;

    // Eight lanes copy 128 bytes of a row; odd rows have their halves exchanged.
    const int row = lane / 8, piece = lane % 8, n_rows = N - first - row, n_columns = K - warp * SKINNY_STEP - piece * 8;
    const u32 to = ring + row * 128 + ((piece ^ (row & 1) << 2) << 4);
    const bf16* from = w + size_t(first + row) * ld_w + warp * SKINNY_STEP + piece * 8;
    const int n = ((K + SKINNY_STEP - 1) / SKINNY_STEP + SKINNY_WARPS - 1 - warp) / SKINNY_WARPS;
    auto copy = [&](int step, u32 stage) {
        const int column = step * SKINNY_WARPS * SKINNY_STEP;
        if (step < n) {
            const bf16* p = from + column;
            const int n_here = column < n_columns ? n_rows : 0;
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++) {
                copy_16(to + stage + i * 512, p, 4 * i < n_here);
                p += size_t(4) * ld_w;
            }
        }
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) copy(i, i * STAGE);
    // The kernel before this one does not write W, or this one is launched after its end.
    wait_before_the_next_begins();

    // What is added to is on its way meanwhile.
    constexpr bool EARLY = GROUPS <= 2;
    float before = 0.0f;
    if (EARLY && mode == ADD_TO_F32 && threadIdx.x < M * ROWS && first + threadIdx.x % ROWS < N) {
        before = static_cast<const float*>(y)[size_t(threadIdx.x / ROWS) * ld_y + first + threadIdx.x % ROWS];
    }

    float sum[TILES][GROUPS][4];
    set_zero(sum);
    u32 x_from = g * ld_x + warp * SKINNY_STEP + t * 8;
    int x_columns = K - warp * SKINNY_STEP - t * 8;
    uint4 columns[HALVES][GROUPS];
    auto load_x = [&](int into, int half) {
        u32 from = x_from + 32 * half;
        const int m_here = 32 * half < x_columns ? M - g : 0;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            columns[into][group] = make_uint4(0, 0, 0, 0);
            if (8 * group < m_here) columns[into][group] = load_here(x + from);
            from += 8 * ld_x;
        }
    };
    const u32 read = ring + g * 128 + ((t ^ (g & 1) << 2) << 4);
    u32 stage = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) load_x(half, half);
        wait_for_copies_but<STAGES - 1>();
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half >= HALVES) load_x(0, half);
            const int from = half < HALVES ? half : 0;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const uint4 upper = load_shared_16((read ^ half << 6) + stage + tile * 2048);
                const uint4 lower = load_shared_16((read ^ half << 6) + stage + tile * 2048 + 1024);
                const u32 left[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    multiply(sum[tile][group], left[0], columns[from][group].x, columns[from][group].y);
                }
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    multiply(sum[tile][group], left[1], columns[from][group].z, columns[from][group].w);
                }
            }
        }
        __syncwarp();
        copy(i + STAGES, stage);
        x_from += SKINNY_WARPS * SKINNY_STEP;
        x_columns -= SKINNY_WARPS * SKINNY_STEP;
        stage = stage == (STAGES - 1) * STAGE ? 0 : stage + STAGE;
    }

    __syncthreads();
    float* own = sums + warp * 8 * GROUPS * PITCH;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                own[(8 * group + 2 * t + j % 2) * PITCH + 16 * tile + 8 * (j / 2) + g] = sum[tile][group][j];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < M * ROWS; i += SKINNY_THREADS) {
        const int m = i / ROWS, k = i % ROWS, column = first + k;
        if (column >= N) continue;
        float total = sums[m * PITCH + k];
#pragma unroll
        for (int j = 1; j < SKINNY_WARPS; j++) total += sums[(j * 8 * GROUPS + m) * PITCH + k];
        if (bias) total += mode ? static_cast<const float*>(bias)[column] : to_float(static_cast<const bf16*>(bias)[column]);
        const size_t place = size_t(m) * ld_y + column;
        if (mode == TO_BF16) {
            static_cast<bf16*>(y)[place] = to_bf16(total);
        } else {
            float* out = static_cast<float*>(y) + place;
            if (mode == ADD_TO_F32) total += EARLY && i == threadIdx.x ? before : *out;
            *out = total;
        }
    }
}

// Grid ⌈N / rows⌉, 256 threads, 98304 bytes of dynamic shared memory. `skinny_linear_M_ROWS`: up to M rows of x, ROWS rows of W for
// a block; each gives a row the same bits. K is a multiple of 8. `bias` may be null. `mode`: y is bf16 and written (0), f32 and
// written (1), f32 and added to (2).
#define SKINNY_LINEAR(M_MOST, GROUPS, ROWS, TILES, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(SKINNY_THREADS, BLOCKS)                                                           \
        skinny_linear_##M_MOST##_##ROWS(const bf16* __restrict__ x, int ld_x, const bf16* __restrict__ w, int ld_w,                \
                                        const void* __restrict__ bias, void* y, int ld_y, int mode, int M, int N, int K) {         \
        skinny_linear<GROUPS, TILES>(x, ld_x, w, ld_w, bias, y, ld_y, mode, M, N, K);                                              \
    }

SKINNY_LINEAR(8, 1, 16, 1, 2)
SKINNY_LINEAR(8, 1, 32, 2, 2)
SKINNY_LINEAR(16, 2, 16, 1, 2)
SKINNY_LINEAR(16, 2, 32, 2, 2)
SKINNY_LINEAR(32, 4, 16, 1, 2)
SKINNY_LINEAR(32, 4, 32, 2, 2)
SKINNY_LINEAR(64, 8, 16, 1, 2)
SKINNY_LINEAR(64, 8, 32, 2, 1)

// ---- Attention.

#define ATTENTION_WARPS 4
#define ATTENTION_THREADS (ATTENTION_WARPS * WARP)
#define ATTENTION_STEP 16  // keys that a warp takes at a time
#define LOWEST __int_as_float(0xff800000)

static_assert(ATTENTION_WARPS * ATTENTION_STEP == PAGE, "a round of steps is a page");

// A block's shared memory: for each warp a ring of keys and one of values, then the warps' sums in its place.
template <int C, int GROUPS> struct Decode {
    using Keys = Tile<C, ATTENTION_STEP>;
    static constexpr int STAGES = C <= 64 ? 4 : C <= 96 ? 3 : C <= 128 ? 2 : 1;
    static constexpr int RING = 2 * STAGES * Keys::BYTES;
    static constexpr int PITCH = C + 4;  // of sums: (warps, 8·GROUPS, C)
};

// Which keys the row sees, in which chunks; a chunk is the keys from a multiple of its length on.
struct Seen {
    int first, end, first_chunk, n_chunks;

    __device__ __forceinline__ Seen(int position, int window, int chunk) {
        end = position + 1;
        first = window > 0 ? max(0, end - window) : 0;
        first_chunk = first / chunk;
        n_chunks = position / chunk - first_chunk + 1;
    }
};

// Begins to read 16 rows, end to end; those before `begin` and from `end` on become zeros.
template <int C> __device__ __forceinline__ void copy_rows(u32 to, const bf16* from, int begin, int end) {
    using Rows = Tile<C, ATTENTION_STEP>;
    constexpr int AT_ONCE = WARP / Rows::PIECES;
    const int lane = threadIdx.x % WARP, row = lane / Rows::PIECES, piece = lane % Rows::PIECES;
    from += row * C + piece * 8;
#pragma unroll
    for (int i = 0; i < ATTENTION_STEP; i += AT_ONCE) {
        const u32 at = to + Rows::place(row + i, piece);
#pragma unroll
        for (int panel = 0; panel < Rows::PANELS; panel++) {
            copy_16(at + panel * Rows::PANEL, from + i * C + panel * 8 * Rows::PIECES, row + i >= begin && row + i < end);
        }
    }
}

__device__ __forceinline__ u32 turned(u32 matrix) {
    u32 out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
    return out;
}

template <int C, int GROUPS>
__device__ __forceinline__ void decode_attention(const bf16* __restrict__ qkv, int ld, const int* __restrict__ row_sequence,
                                                 const int* __restrict__ row_position, const int* __restrict__ page_table,
                                                 int max_pages, const bf16* __restrict__ k_pages, const bf16* __restrict__ v_pages,
                                                 float* __restrict__ partial, float2* __restrict__ stats, int max_splits, int chunk,
                                                 float scale, float softcap, int window, int n_heads, int n_kv_heads,
                                                 bf16* __restrict__ out, int ld_out) {
    using D = Decode<C, GROUPS>;
    using Keys = typename D::Keys;
    constexpr int STAGES = D::STAGES, PITCH = D::PITCH;
    __shared__ float2 of_warp[ATTENTION_WARPS][8 * GROUPS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = blockIdx.z;
    const int sequence = row_sequence[row];
    const int group = n_heads / n_kv_heads, n_parts = (group + 8 * GROUPS - 1) / (8 * GROUPS);
    const int kv = blockIdx.y / n_parts, part = blockIdx.y % n_parts * 8 * GROUPS;
    const int head = kv * group + part, n_here = min(group - part, 8 * GROUPS);
    out += size_t(row) * ld_out + head * C;
    if (sequence < 0) {
        if (max_splits > 1) return;
        for (int i = threadIdx.x; i < n_here * (C / 4); i += ATTENTION_THREADS) reinterpret_cast<uint2*>(out)[i] = make_uint2(0, 0);
        return;
    }
    const Seen seen(row_position[row], window, chunk);
    if (blockIdx.x >= seen.n_chunks) return;
    page_table += size_t(sequence) * max_pages;
    const u32 ring = shared_address(attention_shared) + warp * D::RING;

    // The queries as the right factor of keys · queriesᵀ.
    u32 queries[GROUPS][C / 16][2];
#pragma unroll
    for (int h = 0; h < GROUPS; h++) {
        const bf16* from = qkv + size_t(row) * ld + (head + 8 * h + g) * C + 2 * t;
#pragma unroll
        for (int k = 0; k < C / 16; k++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                queries[h][k][j] = 8 * h + g < n_here ? *reinterpret_cast<const u32*>(from + k * 16 + j * 8) : 0;
            }
        }
    }
    const bool capped = softcap > 0.0f;
    const float slope = capped ? 2.0f * LOG2_E * scale / softcap : 0.0f, factor = (capped ? softcap : scale) * LOG2_E;

    for (int split = blockIdx.x; split < seen.n_chunks; split += gridDim.x) {
        const int start = (seen.first_chunk + split) * chunk;
        const int begin = max(seen.first - start, 0), end = min(seen.end - start, chunk);
        // The chunk's page number `lane`.
        int page = 0;
        if (lane * PAGE < end && lane * PAGE + PAGE > begin) page = page_table[start / PAGE + lane];
        // The warp takes the same 16 rows of each page.
        const int first_page = (max(begin - warp * ATTENTION_STEP - (ATTENTION_STEP - 1), 0) + PAGE - 1) / PAGE;
        const int n = max((end - warp * ATTENTION_STEP + PAGE - 1) / PAGE - first_page, 0);
        auto copy = [&](const bf16* pages, int i, u32 to) {
            if (i < n) {
                const int key = (first_page + i) * PAGE + warp * ATTENTION_STEP;
                const size_t of = __shfl_sync(ALL_LANES, page, first_page + i);
                const bf16* from = pages + ((of * n_kv_heads + kv) * PAGE + warp * ATTENTION_STEP) * C;
                copy_rows<C>(to, from, begin - key, end - key);
            }
            commit_copies();
        };
#pragma unroll
        for (int i = 0; i < STAGES; i++) {
            copy(k_pages, i, ring + 2 * i * Keys::BYTES);
            copy(v_pages, i, ring + (2 * i + 1) * Keys::BYTES);
        }

        float sums[C / 16][GROUPS][4], most[GROUPS][2], total[GROUPS][2];
        set_zero(sums);
#pragma unroll
        for (int h = 0; h < GROUPS; h++) most[h][0] = most[h][1] = LOWEST, total[h][0] = total[h][1] = 0.0f;
        u32 keys = ring;
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            wait_for_copies_but<2 * STAGES - 1>();
            __syncwarp();
            float scores[GROUPS][4];
#pragma unroll
            for (int h = 0; h < GROUPS; h++) scores[h][0] = scores[h][1] = scores[h][2] = scores[h][3] = 0.0f;
            {
                const u32 at = keys + Keys::place(lane % 16, lane / 16);
#pragma unroll
                for (int k = 0; k < C / 16; k++) {
                    u32 left[4];
                    load_matrices(left, Keys::further(at, 2 * k));
#pragma unroll
                    for (int h = 0; h < GROUPS; h++) multiply(scores[h], left, queries[h][k][0], queries[h][k][1]);
                }
            }
            __syncwarp();
            copy(k_pages, i + STAGES, keys);

            // A thread has keys g and g + 8, heads 2t and 2t + 1.
            const int key = (first_page + i) * PAGE + warp * ATTENTION_STEP + g;
            u32 p[GROUPS][2];
#pragma unroll
            for (int h = 0; h < GROUPS; h++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float& s = scores[h][j];
                    s = (capped ? cap_share(s, slope) : s) * factor;
                    if (key + j / 2 * 8 < begin || key + j / 2 * 8 >= end) s = LOWEST;
                }
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float top = fmaxf(scores[h][e], scores[h][e + 2]);
#pragma unroll
                    for (int offset = 4; offset < WARP; offset *= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, offset));
                    top = fmaxf(top, most[h][e]);
                    const float shrink = exp2_fast(most[h][e] - top);
                    most[h][e] = top;
                    scores[h][e] = exp2_fast(scores[h][e] - top);
                    scores[h][e + 2] = exp2_fast(scores[h][e + 2] - top);
                    total[h][e] = total[h][e] * shrink + (scores[h][e] + scores[h][e + 2]);
#pragma unroll
                    for (int c = 0; c < C / 16; c++) sums[c][h][e] *= shrink, sums[c][h][e + 2] *= shrink;
                }
                p[h][0] = turned(to_bf16x2(scores[h][0], scores[h][1]));
                p[h][1] = turned(to_bf16x2(scores[h][2], scores[h][3]));
            }

            const u32 values = keys + Keys::BYTES;
            wait_for_copies_but<2 * STAGES - 1>();
            __syncwarp();
            {
                const u32 at = values + Keys::place(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
                for (int c = 0; c < C / 16; c++) {
                    u32 left[4];
                    load_turned_matrices(left, Keys::further(at, 2 * c));
#pragma unroll
                    for (int h = 0; h < GROUPS; h++) multiply(sums[c][h], left, p[h][0], p[h][1]);
                }
            }
            __syncwarp();
            copy(v_pages, i + STAGES, values);
            keys = keys + 2 * Keys::BYTES == ring + D::RING ? ring : keys + 2 * Keys::BYTES;
        }

        // The warps' sums together, from first to last.
#pragma unroll
        for (int h = 0; h < GROUPS; h++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
#pragma unroll
                for (int offset = 4; offset < WARP; offset *= 2) total[h][e] += __shfl_xor_sync(ALL_LANES, total[h][e], offset);
                if (g == 0) of_warp[warp][8 * h + 2 * t + e] = make_float2(most[h][e], total[h][e]);
            }
        }
        __syncthreads();
        float* shared = reinterpret_cast<float*>(attention_shared);
#pragma unroll
        for (int c = 0; c < C / 16; c++) {
#pragma unroll
            for (int h = 0; h < GROUPS; h++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    shared[(warp * 8 * GROUPS + 8 * h + 2 * t + j % 2) * PITCH + 16 * c + j / 2 * 8 + g] = sums[c][h][j];
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < n_here * (C / 4); i += ATTENTION_THREADS) {
            const int h = i / (C / 4), c = i % (C / 4) * 4;
            float top = LOWEST, whole = 0.0f;
#pragma unroll
            for (int j = 0; j < ATTENTION_WARPS; j++) top = fmaxf(top, of_warp[j][h].x);
            float4 found = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int j = 0; j < ATTENTION_WARPS; j++) {
                const float share = exp2_fast(of_warp[j][h].x - top);
                const float4 x = *reinterpret_cast<const float4*>(shared + (j * 8 * GROUPS + h) * PITCH + c);
                whole += share * of_warp[j][h].y;
                found.x += share * x.x, found.y += share * x.y, found.z += share * x.z, found.w += share * x.w;
            }
            if (max_splits == 1) {
                // What decode_attention_combine would make of it, to the bit.
                *reinterpret_cast<uint2*>(out + h * C + c) =
                    make_uint2(to_bf16x2(found.x / whole, found.y / whole), to_bf16x2(found.z / whole, found.w / whole));
                continue;
            }
            const size_t place = (size_t(row) * n_heads + head + h) * max_splits + split;
            *reinterpret_cast<float4*>(partial + place * C + c) = found;
            if (c == 0) stats[place] = make_float2(top, whole);
        }
        __syncthreads();
    }
}

// What the query of each row finds in each of its chunks, for decode_attention_combine, or where `max_splits` is 1 what that would write to `out`: `partial` (rows, H, max_splits, C) and
// `stats` (rows, H, max_splits) of (largest score in log2, Σ 2^(score − largest)). `chunk`: keys of a chunk, a multiple of 64 up to
// 2048. Scores q·k·`scale` become cap·tanh(score/cap) where `softcap` is not 0; `window`: keys that a query sees at most, 0: all.
// Grid (at least 1, at most max_splits; K·⌈H/K/8⌉; rows), 128 threads. `_wide` is for more than 8 query heads of a key-value head:
// K·⌈H/K/16⌉. Dynamic shared memory: for C of 64, 96, 128, 256: 65536, 73728, 65536, 65536, wide 256: 66560 bytes.
#define DECODE_ATTENTION(C, NAME, GROUPS, BLOCKS)                                                                                  \
    static_assert(ATTENTION_WARPS * 8 * GROUPS * Decode<C, GROUPS>::PITCH * 4 <=                                                   \
                      (GROUPS == 2 && C == 256 ? 66560 : ATTENTION_WARPS * Decode<C, GROUPS>::RING), "sums fit the rings");        \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS)                                                        \
        NAME(const bf16* __restrict__ qkv, int ld, const int* __restrict__ row_sequence, const int* __restrict__ row_position,     \
             const int* __restrict__ page_table, int max_pages, const bf16* __restrict__ k_pages,                                  \
             const bf16* __restrict__ v_pages, float* __restrict__ partial, float2* __restrict__ stats, int max_splits, int chunk, \
             float scale, float softcap, int window, int n_heads, int n_kv_heads, bf16* __restrict__ out, int ld_out) {            \
        wait_for_kernels_before();                                                                                                 \
        decode_attention<C, GROUPS>(qkv, ld, row_sequence, row_position, page_table, max_pages, k_pages, v_pages, partial, stats,  \
                                    max_splits, chunk, scale, softcap, window, n_heads, n_kv_heads, out, ld_out);                  \
    }

DECODE_ATTENTION(64, decode_attention_64, 1, 3)
DECODE_ATTENTION(96, decode_attention_96, 1, 3)
DECODE_ATTENTION(128, decode_attention_128, 1, 3)
DECODE_ATTENTION(256, decode_attention_256, 1, 3)
DECODE_ATTENTION(64, decode_attention_64_wide, 2, 3)
DECODE_ATTENTION(96, decode_attention_96_wide, 2, 3)
DECODE_ATTENTION(128, decode_attention_128_wide, 2, 3)
DECODE_ATTENTION(256, decode_attention_256_wide, 2, 2)

// The chunks of each row together: out (rows, H·C); rows of padding become zeros. Grid (H, rows), 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    decode_attention_combine(const float* __restrict__ partial, const float2* __restrict__ stats, int max_splits, int chunk,
                             int window, const int* __restrict__ row_sequence, const int* __restrict__ row_position,
                             bf16* __restrict__ out, int ld_out, int n_heads, int C) {
    wait_for_kernels_before();
    __shared__ float4 sums[256];
    __shared__ float totals[256];
    const int head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % WARP;
    // A team takes every n_teams-th chunk, a thread four channels.
    const int width = C / 4, n_teams = 256 / width, team = threadIdx.x / width, c = threadIdx.x % width;
    out += size_t(row) * ld_out + head * C;
    if (row_sequence[row] < 0) {
        if (threadIdx.x < width) reinterpret_cast<uint2*>(out)[c] = make_uint2(0, 0);
        return;
    }
    const int n = Seen(row_position[row], window, chunk).n_chunks;
    stats += (size_t(row) * n_heads + head) * max_splits;
    partial += (size_t(row) * n_heads + head) * max_splits * C;
    float top = LOWEST;
    for (int i = lane; i < n; i += WARP) top = fmaxf(top, stats[i].x);
    top = warp_max(top);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float total = 0.0f;
    if (team < n_teams) {
#pragma unroll 4
        for (int i = team; i < n; i += n_teams) {
            const float2 stat = stats[i];
            const float4 x = *reinterpret_cast<const float4*>(partial + size_t(i) * C + c * 4);
            const float share = exp2_fast(stat.x - top);
            total += share * stat.y;
            sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
        }
    }
    sums[threadIdx.x] = sum, totals[threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.x >= width) return;
    for (int i = 1; i < min(n_teams, n); i++) {
        const float4 x = sums[i * width + c];
        total += totals[i * width + c];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    reinterpret_cast<uint2*>(out)[c] = make_uint2(to_bf16x2(sum.x / total, sum.y / total), to_bf16x2(sum.z / total, sum.w / total));
}

// ---- The next token.

struct Best {
    float top, total;  // the largest logit; Σ e^(logit − largest)
    int at;

    __device__ __forceinline__ void take(const float (&x)[4], int first) {
        const float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        if (most > top) {
            total *= exp2_fast((top - most) * LOG2_E);
            top = most;
            at = first + (x[0] == most ? 0 : x[1] == most ? 1 : x[2] == most ? 2 : 3);
        }
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) sum += exp2_fast((x[j] - top) * LOG2_E);
        total += sum;
    }

    __device__ __forceinline__ void over_warp() {
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, top, offset), sum = __shfl_xor_sync(ALL_LANES, total, offset);
            const int place = __shfl_xor_sync(ALL_LANES, at, offset);
            const float most = fmaxf(top, other);
            total = total * exp2_fast((top - most) * LOG2_E) + sum * exp2_fast((other - most) * LOG2_E);
            at = other > top ? place : other < top ? at : min(at, place);
            top = most;
        }
    }
};

// The least column whose weight, with those before it, is above `left`, within columns `first` to `end` - 1 in the order of their numbers; where
// rounding left none, the last that weighs anything. `weigh(column)` is of four columns from a multiple of four on. By one warp.
template <typename Weigh> __device__ __forceinline__ int draw_within(int first, int end, float left, Weigh weigh) {
    const int lane = threadIdx.x % WARP;
    int last = first;
#pragma unroll 1
    for (int start = first; start < end; start += 4 * WARP) {
        float w[4];
        weigh(start + 4 * lane, w);
        const float own = (w[0] + w[1]) + (w[2] + w[3]);
        float until = own;
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            const float before = __shfl_up_sync(ALL_LANES, until, offset);
            if (lane >= offset) until += before;
        }
        int mine = -1;
        float rest = left - (until - own);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (w[j] > 0.0f && (mine < 0 || rest >= 0.0f)) mine = start + 4 * lane + j, rest -= w[j];
        }
        const u32 weighs = __ballot_sync(ALL_LANES, mine >= 0), above = __ballot_sync(ALL_LANES, mine >= 0 && left < until);
        if (above) return __shfl_sync(ALL_LANES, mine, __ffs(above) - 1);
        if (weighs) last = __shfl_sync(ALL_LANES, mine, 31 - __clz(weighs));
        left -= __shfl_sync(ALL_LANES, until, WARP - 1);
    }
    return last;
}

// For each row a token, and its log p by the logits themselves. `inverse`: 1 / temperature, 0 for the first of the largest logits; `random`: where in
// [0, 1) of the weights e^(logit·inverse), laid end to end, the token lies. Logits x become softcap·tanh(x/softcap) where that is not 0. The token is −1
// where the logits are no numbers. One block of 1024 threads for a row; `ld` is a multiple of 4.
extern "C" __global__ void __launch_bounds__(1024)
    draw_token(const float* __restrict__ logits, int ld, int V, float softcap, const float* __restrict__ inverse,
               const double* __restrict__ random, int* __restrict__ id, float* __restrict__ logprob) {
    constexpr int AT_ONCE = 4;
    constexpr int NOWHERE = 0x7fffffff;
    constexpr float SMALLEST = -3.402823466e38f;
    __shared__ Best of_warp[WARP];
    __shared__ float weights[WARP];
    wait_for_kernels_before();
    logits += size_t(blockIdx.x) * ld;
    const float4* from = reinterpret_cast<const float4*>(logits);
    const int n = (V + 3) / 4, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const float slope = softcap > 0.0f ? 2.0f * LOG2_E / softcap : 0.0f;
    auto capped = [&](float x) { return softcap > 0.0f ? softcap * cap_share(x, slope) : x; };
    auto take = [&](float4 part, int column, float (&x)[4]) {
        x[0] = capped(part.x), x[1] = capped(part.y), x[2] = capped(part.z), x[3] = capped(part.w);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (column + j >= V) x[j] = LOWEST;
        }
    };
    Best best = {SMALLEST, 0.0f, NOWHERE};
    for (int first = threadIdx.x; first < n; first += AT_ONCE * blockDim.x) {
        float4 parts[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i * int(blockDim.x) < n) parts[i] = from[first + i * blockDim.x];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int column = (first + i * blockDim.x) * 4;
            if (column >= V) break;
            float x[4];
            take(parts[i], column, x);
            best.take(x, column);
        }
    }
    best.over_warp();
    if (lane == 0) of_warp[warp] = best;
    __syncthreads();
    // Every warp, so that all threads know it.
    best = of_warp[lane];
    best.over_warp();
    const float steepness = inverse[blockIdx.x];
    int token = best.at;
    if (steepness > 0.0f) {
        // A warp weighs neighbouring columns.
        const int of_one = (V + 128 * WARP - 1) / (128 * WARP) * 128, begin = min(warp * of_one, V), end = min(begin + of_one, V);
        auto weigh = [&](int column, float (&w)[4]) {
            w[0] = w[1] = w[2] = w[3] = 0.0f;
            if (column >= V) return;
            take(from[column / 4], column, w);
#pragma unroll
            for (int j = 0; j < 4; j++) w[j] = exp2_fast((w[j] - best.top) * steepness * LOG2_E);
        };
        float sum = 0.0f;
#pragma unroll 2
        for (int column = begin + 4 * lane; column < end; column += 4 * WARP) {
            float w[4];
            weigh(column, w);
            sum += (w[0] + w[1]) + (w[2] + w[3]);
        }
        sum = warp_sum(sum);
        if (lane == 0) weights[warp] = sum;
        __syncthreads();
        if (warp != 0) return;
        double total = 0.0;
#pragma unroll 1
        for (int i = 0; i < WARP; i++) total += weights[i];
        double left = random[blockIdx.x] * total;
        int chosen = 0;
#pragma unroll 1
        for (int i = 0; i < WARP; i++) {
            if (weights[i] <= 0.0f) continue;
            chosen = i;
            if (left < weights[i]) break;
            if (i + 1 < WARP) left -= weights[i];
        }
        const int first = chosen * of_one;
        token = draw_within(first, min(first + of_one, V), float(left), weigh);
    }
    if (threadIdx.x == 0) {
        const bool is_number = isfinite(best.top) && isfinite(best.total) && best.at != NOWHERE;
        id[blockIdx.x] = is_number ? token : -1;
        logprob[blockIdx.x] = is_number ? capped(logits[token]) - best.top - logf(best.total) : 0.0f;
    }
}
