// y = act(x * w + b) + residual over images in planes or pixels, any geometry, in f32 arithmetic: a product of weights
// and columns that are gathered while they are read. One tile of output channels x pixels a block.
//
// Macros: TX the elements of x and w; TY, TBIAS, TRESIDUAL, ACTIVATION as epilogue.cuh says, XSCALE and WSCALE too, a
// row being an image and a column an output channel; PIXELS, KERNEL_H, KERNEL_W as convolution.cuh says; TILE_M x TILE_N
// the tile of a block, PER_M x PER_N that of a thread.
#include "convolution.cuh"
#include "epilogue.cuh"
#include "tiles.cuh"

const u32 DEPTH = 16, THREADS = (TILE_M / PER_M) * (TILE_N / PER_N);
static_assert(THREADS % TILE_N == 0, "a thread gathers for one pixel");

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d(
    const TX* __restrict__ x, const TX* __restrict__ w, TY* __restrict__ y, const float* __restrict__ x_scales,
    const float* __restrict__ w_scales, const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual,
    const Convolution c)
{
    wait_for_launch_before();
    __shared__ __align__(16) float weights[2][DEPTH][TILE_M + 4];
    __shared__ __align__(16) float columns[2][DEPTH][TILE_N + 4];
    const Part part = part_of(blockIdx.x, TILE_M, TILE_N, c);
    const u32 pixels = c.out_height * c.out_width;
    x += part.x;
    w += part.w;

    const u32 LOADS_W = TILE_M * DEPTH / THREADS, LOADS_X = TILE_N * DEPTH / THREADS;
    const u32 own = part.first_pixel + threadIdx.x % TILE_N;
    const Window window = window_of(own, c);
    float next_w[LOADS_W], next_x[LOADS_X];
    auto fetch = [&](u32 first_k) {
#pragma unroll
        for (u32 i = 0; i < LOADS_W; i++) {
            const u32 at = i * THREADS + threadIdx.x, row = part.first_output + at / DEPTH, k = first_k + at % DEPTH;
            next_w[i] = row < c.outputs && k < c.depth ? load(w + (i64)row * c.depth + k) : 0.f;
        }
#pragma unroll
        for (u32 i = 0; i < LOADS_X; i++) {
            const u32 k = first_k + (i * THREADS + threadIdx.x) / TILE_N;
            next_x[i] = own < pixels && k < c.depth ? widen(column_at(x, window, tap_of(k, c), c)) : 0.f;
        }
    };
    auto put = [&](u32 half) {
#pragma unroll
        for (u32 i = 0; i < LOADS_W; i++) {
            const u32 at = i * THREADS + threadIdx.x;
            weights[half][at % DEPTH][at / DEPTH] = next_w[i];
        }
#pragma unroll
        for (u32 i = 0; i < LOADS_X; i++)
            columns[half][(i * THREADS + threadIdx.x) / TILE_N][threadIdx.x % TILE_N] = next_x[i];
    };

    const u32 thread_m = threadIdx.x / (TILE_N / PER_N), thread_n = threadIdx.x % (TILE_N / PER_N);
    float sums[PER_M][PER_N] = {};
    by_turns<DEPTH>(0, c.depth, fetch, put,
        [&](u32 half) { add_slice(sums, weights[half], columns[half], thread_m, thread_n); });
    const Epilogue epilogue{x_scales, w_scales, bias, residual};
#pragma unroll
    for (u32 i = 0; i < PER_M; i++) {
        const u32 output = part.first_output + spread<PER_M, TILE_M>(thread_m, i);
#pragma unroll
        for (u32 j = 0; j < PER_N; j++) {
            const u32 pixel = part.first_pixel + spread<PER_N, TILE_N>(thread_n, j);
            if (output < c.outputs && pixel < pixels) {
                const i64 at = result_at(part, output, pixel, c);
                store(y + at, epilogue.of(sums[i][j], part.image, part.group * c.outputs + output, at));
            }
        }
    }
}
