// Rows normalised, quantised, or both: y = (x - mean) / sqrt(variance + eps) * g + b (Ba, Kiros, Hinton 2016); e4m3
// codes of y under the scale max(amax / 448, 2^-126) of a row, of `group` columns, or of everything. A warp takes a row
// and keeps it in registers where it fits.
//
// Macros: TX elements of x; NORM 1 to normalise; TG, TB elements of g and b, AFFINE 1 where they are there; SCALE NONE,
// ROW, COLUMNS, MEASURE (writes the largest magnitude of each row) or GIVEN (reads one scale for all); TY elements of
// the result; FAKE 1 writes code * scale; PER elements of a row that a lane keeps, 0 reads the row again and again.
#include "types.cuh"

#define NONE 0
#define ROW 1
#define COLUMNS 2
#define MEASURE 3
#define GIVEN 4

const u32 WARPS = 8;

DEVICE float scale_of(float largest) { return fmaxf(largest / 448.f, 1.17549435e-38f); }

// What a code of x under a scale is stored as.
DEVICE void store_code(TY* to, float x, float scale) {
#if SCALE == NONE || SCALE == MEASURE
    store(to, x);
#elif FAKE
    e4m3_t code;
    narrow(code, x / scale);
    store(to, widen(code) * scale);
#else
    narrow(*to, x / scale);
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) normalise(
    const TX* __restrict__ x, const TG* __restrict__ g, const TB* __restrict__ b, TY* __restrict__ y,
    float* __restrict__ scales, const i64 rows, const u32 columns, const u32 group, const float eps)
{
    const u32 lane = threadIdx.x % 32, steps = PER ? PER : (columns + 31) / 32;
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += (i64)gridDim.x * WARPS) {
        const TX* from = x + row * columns;
        TY* to = y + row * columns;
        float kept[PER ? PER : 1], mean = 0.f, factor = 1.f;
#if PER
#pragma unroll
        for (u32 i = 0; i < PER; i++) kept[i] = i * 32 + lane < columns ? load(from + i * 32 + lane) : 0.f;
#endif
        auto raw = [&](u32 i) { return PER ? kept[PER ? i : 0] : load(from + i * 32 + lane); };
#if NORM
#pragma unroll
        for (u32 i = 0; i < steps; i++) mean += i * 32 + lane < columns ? raw(i) : 0.f;
        mean = warp_sum(mean) / (float)columns;
        float variance = 0.f;
#pragma unroll
        for (u32 i = 0; i < steps; i++) {
            const float off = i * 32 + lane < columns ? raw(i) - mean : 0.f;
            variance = fmaf(off, off, variance);
        }
        factor = 1.f / sqrtf(warp_sum(variance) / (float)columns + eps);
#endif
        auto value = [&](u32 i) {
            const float v = raw(i);
#if NORM && AFFINE
            const u32 column = i * 32 + lane;
            return fmaf((v - mean) * factor, load(g + column), load(b + column));
#elif NORM
            return (v - mean) * factor;
#else
            return v;
#endif
        };
#if SCALE == COLUMNS
        const u32 groups = (columns + group - 1) / group;
        for (u32 at = 0; at < groups; at++) {
            const u32 first = at * group, last = min(columns, first + group);
            float largest = 0.f;
#pragma unroll
            for (u32 i = 0; i < steps; i++) {
                const u32 column = i * 32 + lane;
                if (column >= first && column < last) largest = fmaxf(largest, fabsf(value(i)));
            }
            const float scale = scale_of(warp_max(largest));
            if (!FAKE && lane == 0) scales[row * groups + at] = scale;
#pragma unroll
            for (u32 i = 0; i < steps; i++) {
                const u32 column = i * 32 + lane;
                if (column >= first && column < last) store_code(to + column, value(i), scale);
            }
        }
#else
        float scale = 1.f;
#if SCALE == GIVEN
        scale = scales[0];
#elif SCALE != NONE
        float largest = 0.f;
#pragma unroll
        for (u32 i = 0; i < steps; i++)
            if (i * 32 + lane < columns) largest = fmaxf(largest, fabsf(value(i)));
        largest = warp_max(largest);
        scale = SCALE == MEASURE ? largest : scale_of(largest);
        if ((SCALE == MEASURE || !FAKE) && lane == 0) scales[row] = scale;
#endif
#if SCALE != MEASURE
#pragma unroll
        for (u32 i = 0; i < steps; i++)
            if (i * 32 + lane < columns) store_code(to + i * 32 + lane, value(i), scale);
#endif
#endif
    }
}

// The scale of everything from the largest magnitude of every row; one block.
extern "C" __global__ void __launch_bounds__(256) scale_of_rows(
    const float* __restrict__ largest, float* __restrict__ scale, const i64 rows)
{
    __shared__ float parts[8];
    float most = 0.f;
    for (i64 row = threadIdx.x; row < rows; row += 256) most = fmaxf(most, largest[row]);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < 8; i++) most = fmaxf(most, parts[i]);
        scale[0] = scale_of(most);
    }
}
