// Changes of low rank by many adapters at once: the rows of one adapter go together, up to 16 in a segment, whatever lies between.
// Adapters, segments and rows lie in device memory and may change from launch to launch. No row's result depends on the others.
#include "hopper.cuh"

#define WARPS 8
#define THREADS (WARPS * WARP)
#define STEP 64        // columns of A that a warp takes at a time
#define STAGES 3  // few, so that a block of it has room beside two of a product
#define STAGE 1024     // bytes: 8 ranks of a step
#define RING (STAGES * STAGE)

// The change of columns `first_column` on by ranks `first_rank` on: B is (n_columns, n_ranks). Multiples of 8, all of them.
struct Part {
    const bf16* b;
    int ld_b, first_column, n_columns, first_rank, n_ranks, unused;
};

// A is (n_ranks, K), scaled, the parts' ranks one after the other; `n_ranks` a multiple of 8.
struct Adapter {
    const bf16* a;
    int ld_a, n_ranks, n_parts, unused;
    Part parts[3];
};

// Rows rows[first] to rows[first + n_rows - 1].
struct Segment {
    int first, n_rows, adapter;
};

// h (rows, ranks) = x (rows, K) · A (ranks, K)ᵀ for each row of a segment, with its adapter's A. Grid (⌈most ranks / 8⌉, most
// segments); 256 threads, 24576 bytes of dynamic shared memory. Warp i of the 8 sums the steps i, i + 8, … of K, then the warps' sums are added from
// first to last. May be launched after a product of the same x that has not ended: it begins when those before that product have, so it waits for
// nothing that it reads, and ends after the product; nothing else may stand before it. x is read past the caches of multiprocessors, as nothing was waited for.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    grouped_lora_shrink(const bf16* __restrict__ x, int ld_x, const Adapter* __restrict__ adapters,
                        const Segment* __restrict__ segments, const int* __restrict__ n_segments, const int* __restrict__ rows,
                        float* __restrict__ h, int ld_h, int K) {
    __shared__ float sums[WARPS][16][8];
    if (blockIdx.y >= *n_segments) return;
    const Segment segment = segments[blockIdx.y];
    const Adapter& adapter = adapters[segment.adapter];
    const int rank = blockIdx.x * 8;
    if (rank >= adapter.n_ranks) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 ring = shared_address(attention_shared) + warp * RING;

    // Eight lanes copy 128 bytes of a rank; odd ranks have their halves exchanged.
    const int row = lane / 8, piece = lane % 8, ld_a = adapter.ld_a;
    const u32 to = ring + row * 128 + ((piece ^ (row & 1) << 2) << 4);
    const bf16* from = adapter.a + size_t(rank + row) * ld_a + warp * STEP + piece * 8;
    const int n_columns = K - warp * STEP - piece * 8, n = ((K + STEP - 1) / STEP + WARPS - 1 - warp) / WARPS;
    auto copy = [&](int i) {
        if (i < n) {
            const int column = i * WARPS * STEP;
            const u32 at = to + i % STAGES * STAGE;
            copy_16(at, from + column, column < n_columns);
            copy_16(at + 512, from + size_t(4) * ld_a + column, column < n_columns);
        }
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) copy(i);
    let_the_next_begin();

    const int n_rows = segment.n_rows;
    const bool has_upper = g < n_rows, has_lower = g + 8 < n_rows;
    rows += segment.first;
    const bf16* x_upper = x + size_t(has_upper ? rows[g] : 0) * ld_x + warp * STEP + t * 8;
    const bf16* x_lower = x + size_t(has_lower ? rows[g + 8] : 0) * ld_x + warp * STEP + t * 8;
    int x_columns = K - warp * STEP - t * 8;
    const u32 read = ring + g * 128 + ((t ^ (g & 1) << 2) << 4);
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        uint4 upper[2], lower[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            upper[half] = lower[half] = make_uint4(0, 0, 0, 0);
            const bool exists = 32 * half < x_columns;
            if (has_upper && exists) upper[half] = __ldcg(reinterpret_cast<const uint4*>(x_upper + 32 * half));
            if (has_lower && exists) lower[half] = __ldcg(reinterpret_cast<const uint4*>(x_lower + 32 * half));
        }
        wait_for_copies_but<STAGES - 1>();
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 right = load_shared_16((read + i % STAGES * STAGE) ^ half << 6);
            const u32 left[2][4] = {{upper[half].x, lower[half].x, upper[half].y, lower[half].y},
                                    {upper[half].z, lower[half].z, upper[half].w, lower[half].w}};
            multiply(sum, left[0], right.x, right.y);
            multiply(sum, left[1], right.z, right.w);
        }
        __syncwarp();
        copy(i + STAGES);
        x_upper += WARPS * STEP, x_lower += WARPS * STEP, x_columns -= WARPS * STEP;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) sums[warp][g + j / 2 * 8][2 * t + j % 2] = sum[j];
    __syncthreads();
    const int m = threadIdx.x / 8, k = threadIdx.x % 8;
    if (m < n_rows) {
        float total = sums[0][m][k];
#pragma unroll
        for (int j = 1; j < WARPS; j++) total += sums[j][m][k];
        h[size_t(rows[m]) * ld_h + rank + k] = total;
    }
    // What comes next reads what the product before writes, too.
    wait_for_kernels_before();
}

#define EXPAND_WARPS 4
#define EXPAND_COLUMNS 64  // of a warp
#define EXPAND_PITCH (EXPAND_COLUMNS + 4)

// Eight numbers of y.
template <typename Y> struct Eight;

template <> struct Eight<bf16> {
    uint4 bits;

    __device__ __forceinline__ void load(const bf16* from) { bits = *reinterpret_cast<const uint4*>(from); }
    __device__ __forceinline__ void store_sum(bf16* to, float4 a, float4 b) const {
        *reinterpret_cast<uint4*>(to) = make_uint4(to_bf16x2(low_float(bits.x) + a.x, high_float(bits.x) + a.y),
                                                   to_bf16x2(low_float(bits.y) + a.z, high_float(bits.y) + a.w),
                                                   to_bf16x2(low_float(bits.z) + b.x, high_float(bits.z) + b.y),
                                                   to_bf16x2(low_float(bits.w) + b.z, high_float(bits.w) + b.w));
    }
};

template <> struct Eight<float> {
    float4 a, b;

    __device__ __forceinline__ void load(const float* from) {
        a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    }
    __device__ __forceinline__ void store_sum(float* to, float4 c, float4 d) const {
        reinterpret_cast<float4*>(to)[0] = make_float4(a.x + c.x, a.y + c.y, a.z + c.z, a.w + c.w);
        reinterpret_cast<float4*>(to)[1] = make_float4(b.x + d.x, b.y + d.y, b.z + d.z, b.w + d.w);
    }
};

template <typename Y>
__device__ __forceinline__ void expand(Y* __restrict__ y, int ld_y, const float* __restrict__ h, int ld_h,
                                       const Adapter* __restrict__ adapters, const Segment* __restrict__ segments,
                                       const int* __restrict__ n_segments, const int* __restrict__ rows) {
    __shared__ __align__(16) float of_warp[EXPAND_WARPS][16 * EXPAND_PITCH];
    constexpr int TILES = EXPAND_COLUMNS / 16;
    if (blockIdx.y >= *n_segments) return;
    const Segment segment = segments[blockIdx.y];
    const Adapter& adapter = adapters[segment.adapter];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    // Blocks go through the parts one after the other.
    int part = 0, block = blockIdx.x;
    for (; part < adapter.n_parts; part++) {
        const int n = (adapter.parts[part].n_columns + EXPAND_WARPS * EXPAND_COLUMNS - 1) / (EXPAND_WARPS * EXPAND_COLUMNS);
        if (block < n) break;
        block -= n;
    }
    if (part == adapter.n_parts) return;
    const Part of = adapter.parts[part];
    const int first = (block * EXPAND_WARPS + warp) * EXPAND_COLUMNS, n_columns = of.n_columns - first, n_rows = segment.n_rows;
    if (n_columns <= 0) return;
    rows += segment.first;
    // No kernel before this one writes B: a warp's rows of it are on their way meanwhile.
    const char* of_warps = reinterpret_cast<const char*>(of.b + size_t(first) * of.ld_b);
    for (int i = 128 * lane; i < 2 * min(n_columns, EXPAND_COLUMNS) * of.ld_b; i += 128 * WARP) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(of_warps + i));
    }
    wait_for_kernels_before();

    Eight<Y> before[4];
    Y* places[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane / 8 + 4 * i, column = lane % 8 * 8;
        places[i] = nullptr;
        if (row >= n_rows || column >= n_columns) continue;
        places[i] = y + size_t(rows[row]) * ld_y + of.first_column + first + column;
        before[i].load(places[i]);
    }

    // Ranks are permuted alike in both factors within 16: a thread's four of a row are its share of a product.
    float sum[TILES][2][4];
    set_zero(sum);
    const bool has[2] = {g < n_rows, g + 8 < n_rows}, two = n_rows > 8;
    const float* from_h[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        from_h[half] = h + size_t(has[half] ? rows[g + 8 * half] : 0) * ld_h + of.first_rank + 4 * t;
    }
    const bf16* from_b = of.b + size_t(first + g) * of.ld_b + 4 * t;
#pragma unroll 2
    for (int rank = 0; rank < of.n_ranks; rank += 16) {
        const bool exists = rank + 4 * t < of.n_ranks;
        uint2 b[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = 16 * tile + 8 * half;
                b[tile][half] = make_uint2(0, 0);
                if (exists && column + g < n_columns) {
                    b[tile][half] = __ldg(reinterpret_cast<const uint2*>(from_b + size_t(column) * of.ld_b + rank));
                }
            }
        }
        u32 right[2][2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float4 k = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (exists && has[half]) k = *reinterpret_cast<const float4*>(from_h[half] + rank);
            right[half][0] = to_bf16x2(k.x, k.y), right[half][1] = to_bf16x2(k.z, k.w);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const u32 left[4] = {b[tile][0].x, b[tile][1].x, b[tile][0].y, b[tile][1].y};
            multiply(sum[tile][0], left, right[0][0], right[0][1]);
            if (two) multiply(sum[tile][1], left, right[1][0], right[1][1]);
        }
    }

    float* own = of_warp[warp];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                own[(8 * half + 2 * t + j % 2) * EXPAND_PITCH + 16 * tile + j / 2 * 8 + g] = sum[tile][half][j];
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (!places[i]) continue;
        const float4* change = reinterpret_cast<const float4*>(own + (lane / 8 + 4 * i) * EXPAND_PITCH + lane % 8 * 8);
        before[i].store_sum(places[i], change[0], change[1]);
    }
}

// y += h · Bᵀ, with h rounded to bf16, in the columns of the adapter's parts, for each row of a segment. Grid (Σ over an adapter's
// parts of ⌈n_columns / 256⌉, the most there is; most segments), 128 threads.
extern "C" __global__ void __launch_bounds__(EXPAND_WARPS* WARP)
    grouped_lora_expand(bf16* __restrict__ y, int ld_y, const float* __restrict__ h, int ld_h,
                        const Adapter* __restrict__ adapters, const Segment* __restrict__ segments,
                        const int* __restrict__ n_segments, const int* __restrict__ rows) {
    expand(y, ld_y, h, ld_h, adapters, segments, n_segments, rows);
}

extern "C" __global__ void __launch_bounds__(EXPAND_WARPS* WARP)
    grouped_lora_expand_f32(float* __restrict__ y, int ld_y, const float* __restrict__ h, int ld_h,
                            const Adapter* __restrict__ adapters, const Segment* __restrict__ segments,
                            const int* __restrict__ n_segments, const int* __restrict__ rows) {
    expand(y, ld_y, h, ld_h, adapters, segments, n_segments, rows);
}
