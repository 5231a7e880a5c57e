// C[i] = epilogue(A[i] B[i]): products of any shape and element types in f32 arithmetic; i runs over a batch.
//
// `product_tiled` takes everything, one tile of the result a block. `product_few_rows` is for results of few rows, where
// reading B is all there is to do: one column a warp.
//
// Macros: TA, TB elements of A [M, K] and B; TY, TBIAS, TRESIDUAL, ACTIVATION, XSCALE, WSCALE as epilogue.cuh says;
// TRANSPOSED 1 where B is [N, K], 0 where it is [K, N]; TILE_M x TILE_N the tile of a block, PER_M x PER_N that of a
// thread; ROWS the rows of a warp in `product_few_rows`.
#include "epilogue.cuh"
#include "strides.cuh"
#include "tiles.cuh"

struct Product {
    u32 m, n, k;
    // Columns that share a scale, where scales are of COLUMNS.
    u32 x_group, w_group;
    // The batch, and how far A and B move in it.
    Shape batch;
    Strides a, b;
};

const u32 DEPTH = 16, THREADS = (TILE_M / PER_M) * (TILE_N / PER_N);

// Codes with scales of COLUMNS are scaled one by one.
DEVICE float load_a(const TA* a, const float* scales, u32 row, u32 k, const Product& p) {
    const float value = load(a + (i64)row * p.k + k);
    return XSCALE == COLUMNS ? value * scales[(i64)row * ((p.k + p.x_group - 1) / p.x_group) + k / p.x_group] : value;
}
DEVICE float load_b(const TB* b, const float* scales, u32 column, u32 k, const Product& p) {
    const float value = load(b + (TRANSPOSED ? (i64)column * p.k + k : (i64)k * p.n + column));
    return WSCALE == COLUMNS ? value * scales[(i64)column * ((p.k + p.w_group - 1) / p.w_group) + k / p.w_group]
                             : value;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product_tiled(
    const TA* __restrict__ a, const TB* __restrict__ b, TY* __restrict__ y, const float* __restrict__ x_scales,
    const float* __restrict__ w_scales, const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual,
    const Product p)
{
    wait_for_launch_before();
    const Epilogue epilogue{x_scales, w_scales, bias, residual};
    __shared__ __align__(16) float tile_a[2][DEPTH][TILE_M + 4];
    __shared__ __align__(16) float tile_b[2][DEPTH][TILE_N + 4];
    const u32 tiles_m = (p.m + TILE_M - 1) / TILE_M, tiles_n = (p.n + TILE_N - 1) / TILE_N;
    const u32 tile = blockIdx.x % (tiles_m * tiles_n), item = blockIdx.x / (tiles_m * tiles_n);
    const u32 first_m = tile % tiles_m * TILE_M, first_n = tile / tiles_m * TILE_N;
    a += offset(item, p.batch, p.a);
    b += offset(item, p.batch, p.b);

    const u32 LOADS_A = TILE_M * DEPTH / THREADS, LOADS_B = TILE_N * DEPTH / THREADS;
    float next_a[LOADS_A], next_b[LOADS_B];
    auto fetch = [&](u32 first_k) {
#pragma unroll
        for (u32 i = 0; i < LOADS_A; i++) {
            const u32 at = i * THREADS + threadIdx.x, row = first_m + at / DEPTH, k = first_k + at % DEPTH;
            next_a[i] = row < p.m && k < p.k ? load_a(a, epilogue.x_scales, row, k, p) : 0.f;
        }
#pragma unroll
        for (u32 i = 0; i < LOADS_B; i++) {
            const u32 at = i * THREADS + threadIdx.x;
            const u32 column = first_n + (TRANSPOSED ? at / DEPTH : at % TILE_N);
            const u32 k = first_k + (TRANSPOSED ? at % DEPTH : at / TILE_N);
            next_b[i] = column < p.n && k < p.k ? load_b(b, epilogue.w_scales, column, k, p) : 0.f;
        }
    };
    auto put = [&](u32 half) {
#pragma unroll
        for (u32 i = 0; i < LOADS_A; i++) {
            const u32 at = i * THREADS + threadIdx.x;
            tile_a[half][at % DEPTH][at / DEPTH] = next_a[i];
        }
#pragma unroll
        for (u32 i = 0; i < LOADS_B; i++) {
            const u32 at = i * THREADS + threadIdx.x;
            if (TRANSPOSED) tile_b[half][at % DEPTH][at / DEPTH] = next_b[i];
            else tile_b[half][at / TILE_N][at % TILE_N] = next_b[i];
        }
    };

    const u32 thread_m = threadIdx.x / (TILE_N / PER_N), thread_n = threadIdx.x % (TILE_N / PER_N);
    float sums[PER_M][PER_N] = {};
    by_turns<DEPTH>(0, p.k, fetch, put,
        [&](u32 half) { add_slice(sums, tile_a[half], tile_b[half], thread_m, thread_n); });
#pragma unroll
    for (u32 i = 0; i < PER_M; i++) {
        const u32 row = first_m + spread<PER_M, TILE_M>(thread_m, i);
#pragma unroll
        for (u32 j = 0; j < PER_N; j++) {
            const u32 column = first_n + spread<PER_N, TILE_N>(thread_n, j);
            if (row < p.m && column < p.n) {
                const i64 at = ((i64)item * p.m + row) * p.n + column;
                store(y + at, epilogue.of(sums[i][j], row, column, at));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) product_few_rows(
    const TA* __restrict__ a, const TB* __restrict__ b, TY* __restrict__ y, const float* __restrict__ x_scales,
    const float* __restrict__ w_scales, const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual,
    const Product p)
{
    wait_for_launch_before();
    const Epilogue epilogue{x_scales, w_scales, bias, residual};
    const u32 column = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * ROWS;
    if (column >= p.n) return;
    float sums[ROWS] = {};
#pragma unroll 4
    for (u32 k = lane; k < p.k; k += 32) {
        const float right = load_b(b, epilogue.w_scales, column, k, p);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++)
            sums[i] = fmaf(first + i < p.m ? load_a(a, epilogue.x_scales, first + i, k, p) : 0.f, right, sums[i]);
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const float sum = warp_sum(sums[i]);
        const u32 row = first + i;
        const i64 at = (i64)row * p.n + column;
        if (lane == i && row < p.m) store(y + at, epilogue.of(sum, row, column, at));
    }
}
