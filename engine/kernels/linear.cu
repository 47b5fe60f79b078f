// Products of any number of rows in one order of summation, for generation on sm_90a: row i of y has the same bits whatever rows are
// beside it. Small weights, and other cards, have `skinny_linear` (decode.cu).
//
// A cluster of blocks has 128 rows of W and up to ROWS rows of x; each of its blocks sums a part of the columns, and the parts are added from first to
// last. Which columns a block has depends on the shape of W alone.
#include "hopper.cuh"

#define LINEAR_TILE 128  // rows of W
#define LINEAR_STEP 64   // columns at a time
#define LINEAR_THREADS (LINEAR_TILE / 64 * WARPGROUP)
#define LINEAR_PITCH (LINEAR_TILE + 4)  // of sums
#define MOST_BLOCKS 8    // of a cluster

#if HOPPER

// How many steps of W and of ROWS rows of x lie in a block's ring.
template <int ROWS> struct LinearShape {
    static constexpr int W = LINEAR_TILE * 2 * LINEAR_STEP, X = ROWS * 2 * LINEAR_STEP, STAGE = W + X;
    // Two blocks for a multiprocessor, but for prompts.
    static constexpr int STAGES = (ROWS > 64 ? 222 : 111) * 1024 / STAGE;
    static constexpr int BYTES = STAGES * STAGE;
    static_assert(STAGES >= 3 && ROWS * LINEAR_PITCH * 4 <= BYTES, "steps enough, and sums fit the ring");
};

// Begins to read rows of 64 columns into a tile; rows from `n_rows` on and columns from `n_columns` on become zeros.
template <int ROWS> __device__ __forceinline__ void copy_tile(u32 to, const bf16* from, int ld, int n_rows, int n_columns) {
    using T = Tile<LINEAR_STEP, ROWS>;
    constexpr int AT_ONCE = LINEAR_THREADS / T::PIECES;
    const int row = threadIdx.x / T::PIECES, piece = threadIdx.x % T::PIECES;
    if (ROWS < AT_ONCE && row >= ROWS) return;
    if (piece * 8 >= n_columns) n_rows = 0;
    to += T::place(row, piece);
    from += size_t(row) * ld + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += AT_ONCE) {
        copy_16(to + i * T::PITCH, from, row + i < n_rows);
        from += size_t(AT_ONCE) * ld;
    }
}

template <int ROWS>
__device__ __forceinline__ void linear(const bf16* __restrict__ x, int ld_x, const bf16* __restrict__ w, int ld_w,
                                       const void* __restrict__ bias, void* y, int ld_y, int mode, int M, int N, int K) {
    using Shape = LinearShape<ROWS>;
    constexpr int STAGES = Shape::STAGES, AHEAD = STAGES - 2;
    using W = Tile<LINEAR_STEP, 64>;
    using X = Tile<LINEAR_STEP, ROWS>;
    const u32 ring = shared_address(attention_shared);
    const int n_blocks = cluster_size(), rank = blockIdx.y % n_blocks, first = blockIdx.y / n_blocks * LINEAR_TILE;
    const int first_row = blockIdx.x * ROWS, n_rows = min(M - first_row, ROWS);
    const int warpgroup = threadIdx.x / WARPGROUP, lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const int n_steps = (K + LINEAR_STEP - 1) / LINEAR_STEP, begin = rank * n_steps / n_blocks;
    const int n = (rank + 1) * n_steps / n_blocks - begin;
    x += size_t(first_row) * ld_x + begin * LINEAR_STEP;
    w += size_t(first) * ld_w + begin * LINEAR_STEP;
    const int n_columns = K - begin * LINEAR_STEP;

    auto copy_w = [&](int step, u32 stage) {
        if (step < n) copy_tile<LINEAR_TILE>(stage, w + step * LINEAR_STEP, ld_w, N - first, n_columns - step * LINEAR_STEP);
    };
    auto copy_x = [&](int step, u32 stage) {
        if (step < n) copy_tile<ROWS>(stage + Shape::W, x + step * LINEAR_STEP, ld_x, n_rows, n_columns - step * LINEAR_STEP);
    };
    // The kernel before this one does not write W, or this one is launched after its end.
#pragma unroll
    for (int i = 0; i < AHEAD; i++) copy_w(i, ring + i * Shape::STAGE);
    wait_before_the_next_begins();
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        copy_x(i, ring + i * Shape::STAGE);
        commit_copies();
    }

    float sums[ROWS / 8][4];
#pragma unroll
    for (int m = 0; m < ROWS / 8; m++) sums[m][0] = sums[m][1] = sums[m][2] = sums[m][3] = 0.0f;
    u32 stage = ring, next = ring + AHEAD * Shape::STAGE;
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        wait_for_copies_but<AHEAD - 1>();
        fence_for_products();
        // Everyone's copies of this step are here, and everyone's products of the step before the last are done.
        __syncthreads();
        copy_w(i + AHEAD, next);
        copy_x(i + AHEAD, next);
        commit_copies();
        const u64 left = rows_of<W>(stage + warpgroup * W::BYTES), right = rows_of<X>(stage + Shape::W);
        hold(sums);
        begin_products();
#pragma unroll
        for (int k = 0; k < LINEAR_STEP / 16; k++) multiply_group<0>(sums, left + channels_on<W>(k), right + channels_on<X>(k), true);
        commit_products();
        wait_for_products<1>();
        hold(sums);
        stage = stage + Shape::STAGE == ring + STAGES * Shape::STAGE ? ring : stage + Shape::STAGE;
        next = next + Shape::STAGE == ring + STAGES * Shape::STAGE ? ring : next + Shape::STAGE;
    }
    wait_for_products<0>();
    hold(sums);
    __syncthreads();

    // (rows of x, rows of W): the sums of this block.
    const u32 own = ring + (warpgroup * 64 + warp * 16 + lane / 4) * 4 + lane % 4 * 2 * LINEAR_PITCH * 4;
#pragma unroll
    for (int m = 0; m < ROWS / 8; m++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            store_shared(own + ((8 * m + j % 2) * LINEAR_PITCH + j / 2 * 8) * 4, __float_as_uint(sums[m][j]));
        }
    }
    wait_for_cluster();
    for (int i = rank * LINEAR_THREADS + threadIdx.x; i < n_rows * (LINEAR_TILE / 4); i += n_blocks * LINEAR_THREADS) {
        const int m = i / (LINEAR_TILE / 4), column = i % (LINEAR_TILE / 4) * 4, n_here = min(N - first - column, 4);
        if (n_here <= 0) continue;
        const u32 at = ring + (m * LINEAR_PITCH + column) * 4;
        // All parts are on their way before the first is added.
        float4 parts[MOST_BLOCKS];
#pragma unroll
        for (int j = 0; j < MOST_BLOCKS; j++) {
            if (j < n_blocks) parts[j] = load_of_block(at, j);
        }
        float total[4] = {parts[0].x, parts[0].y, parts[0].z, parts[0].w};
#pragma unroll
        for (int j = 1; j < MOST_BLOCKS; j++) {
            if (j < n_blocks) total[0] += parts[j].x, total[1] += parts[j].y, total[2] += parts[j].z, total[3] += parts[j].w;
        }
        const size_t place = size_t(first_row + m) * ld_y + first + column;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (bias && j < n_here) {
                const int k = first + column + j;
                total[j] += mode ? static_cast<const float*>(bias)[k] : to_float(static_cast<const bf16*>(bias)[k]);
            }
        }
        if (mode == TO_BF16) {
            bf16* out = static_cast<bf16*>(y) + place;
            if (n_here == 4) {
                *reinterpret_cast<uint2*>(out) = make_uint2(to_bf16x2(total[0], total[1]), to_bf16x2(total[2], total[3]));
            } else {
                for (int j = 0; j < n_here; j++) out[j] = to_bf16(total[j]);
            }
        } else {
            float* out = static_cast<float*>(y) + place;
            if (n_here == 4) {
                float4 sum = mode == ADD_TO_F32 ? *reinterpret_cast<const float4*>(out) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                sum.x += total[0], sum.y += total[1], sum.z += total[2], sum.w += total[3];
                *reinterpret_cast<float4*>(out) = sum;
            } else {
                for (int j = 0; j < n_here; j++) out[j] = mode == ADD_TO_F32 ? out[j] + total[j] : total[j];
            }
        }
    }
    // No block leaves while another reads what it has.
    wait_for_cluster();
}

#endif

// y (M, N) = x (M, K) · W (N, K)ᵀ + bias. `linear_ROWS`: grid (⌈M / ROWS⌉, ⌈N / 128⌉ · S) of clusters (1, S), S from 1 to 8; 256 threads; BYTES of
// dynamic shared memory. K is a multiple of 8. `bias` may be null. `mode`: y is bf16 and written (0), f32 and written (1), f32 and added to (2).
// May be launched before the kernels before it have ended: it reads W alone until then.
#if HOPPER
#define LINEAR(ROWS, BYTES_OF_BLOCK)                                                                                               \
    static_assert(LinearShape<ROWS>::BYTES == BYTES_OF_BLOCK, "what the host gives it");                                           \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, ROWS > 64 ? 1 : 2)                                                \
        linear_##ROWS(const bf16* __restrict__ x, int ld_x, const bf16* __restrict__ w, int ld_w, const void* __restrict__ bias,   \
                      void* y, int ld_y, int mode, int M, int N, int K) {                                                          \
        linear<ROWS>(x, ld_x, w, ld_w, bias, y, ld_y, mode, M, N, K);                                                              \
    }
#else
#define LINEAR(ROWS, BYTES_OF_BLOCK)                                                                                               \
    extern "C" __global__ void linear_##ROWS(const bf16* __restrict__, int, const bf16* __restrict__, int, const void* __restrict__,\
                                             void*, int, int, int, int, int) {}
#endif

LINEAR(8, 104448)
LINEAR(16, 110592)
LINEAR(32, 102400)
LINEAR(64, 98304)
LINEAR(128, 196608)
