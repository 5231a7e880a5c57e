// What rows get back through `layer_norm`: with h = g * gain, v = x - mean and s = 1 / sqrt(variance + eps),
// dx = (h - mean(h) - v * s^2 * mean(h * v)) * s. A warp takes a row; `layer_norm_grad_kept` keeps it in registers,
// `layer_norm_grad_any` reads it three times, for rows of any width.
//
// Macros: TG, TX elements of g and of x and dx; TGAIN those of the gain, AFFINE 1 where it is there. Of
// `layer_norm_grad_kept`: a lane keeps PER chunks of VECTOR neighbouring columns, 32 chunks apart.
#include "vectors.cuh"

const u32 WARPS = 8;

#if PER
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) layer_norm_grad_kept(
    const TG* __restrict__ g, const TX* __restrict__ x, const TGAIN* __restrict__ gain, TX* __restrict__ dx,
    const i64 rows, const u32 columns, const float eps)
{
    wait_for_launch_before();
    const u32 lane = threadIdx.x % 32;
    const float part = 1.f / (float)columns;
    // Columns that lie beyond a row are zeros.
    auto column_of = [&](u32 i) { return (i * 32 + lane) * VECTOR; };
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += (i64)gridDim.x * WARPS) {
        float v[PER][VECTOR] = {}, h[PER][VECTOR] = {};
        float mean = 0.f, squares = 0.f, along = 0.f, level = 0.f;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (column_of(i) < columns) {
                load_neighbours(v[i], x + row * columns + column_of(i));
                load_neighbours(h[i], g + row * columns + column_of(i));
            }
#pragma unroll
        for (u32 i = 0; i < PER; i++)
#pragma unroll
            for (u32 j = 0; j < VECTOR; j++) mean += v[i][j];
        mean = warp_sum(mean) * part;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (column_of(i) < columns) {
#if AFFINE
                float gains[VECTOR];
                load_neighbours(gains, gain + column_of(i));
#endif
#pragma unroll
                for (u32 j = 0; j < VECTOR; j++) {
#if AFFINE
                    h[i][j] *= gains[j];
#endif
                    v[i][j] -= mean;
                    squares = fmaf(v[i][j], v[i][j], squares);
                    along = fmaf(h[i][j], v[i][j], along);
                    level += h[i][j];
                }
            }
        const float scale = 1.f / sqrtf(warp_sum(squares) * part + eps);
        along = warp_sum(along) * part * scale * scale;
        level = warp_sum(level) * part;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (column_of(i) < columns) {
#pragma unroll
                for (u32 j = 0; j < VECTOR; j++) h[i][j] = fmaf(-v[i][j], along, h[i][j] - level) * scale;
                store_neighbours(dx + row * columns + column_of(i), h[i]);
            }
    }
}
#else
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) layer_norm_grad_any(
    const TG* __restrict__ g, const TX* __restrict__ x, const TGAIN* __restrict__ gain, TX* __restrict__ dx,
    const i64 rows, const u32 columns, const float eps)
{
    wait_for_launch_before();
    const u32 lane = threadIdx.x % 32;
    const float part = 1.f / (float)columns;
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += (i64)gridDim.x * WARPS) {
        const i64 start = row * columns;
        auto h = [&](u32 k) { return load(g + start + k) * (AFFINE ? load(gain + k) : 1.f); };
        float mean = 0.f, squares = 0.f, along = 0.f, level = 0.f;
        for (u32 k = lane; k < columns; k += 32) mean += load(x + start + k);
        mean = warp_sum(mean) * part;
        for (u32 k = lane; k < columns; k += 32) {
            const float v = load(x + start + k) - mean, own = h(k);
            squares = fmaf(v, v, squares);
            along = fmaf(own, v, along);
            level += own;
        }
        const float scale = 1.f / sqrtf(warp_sum(squares) * part + eps);
        along = warp_sum(along) * part * scale * scale;
        level = warp_sum(level) * part;
        for (u32 k = lane; k < columns; k += 32) {
            const float v = load(x + start + k) - mean;
            store(dx + start + k, fmaf(-v, along, h(k) - level) * scale);
        }
    }
}
#endif
