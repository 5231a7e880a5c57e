// Rows normalised, quantised, or both: y = (x - mean) / sqrt(variance + eps) * g + b (Ba, Kiros, Hinton 2016); e4m3
// codes of y under the scale max(amax / 448, 2^-126) of a row, of `group` columns, or of everything. A warp takes a row.
// `normalise_kept` keeps it in registers; `normalise_any` reads it again and again, for rows of any width.
//
// Macros: TX elements of x; NORM 1 to normalise; TG, TB elements of g and b, AFFINE 1 where they are there; SCALE NONE,
// ROW, COLUMNS, MEASURE (writes the largest magnitude of each row) or GIVEN (reads one scale for all); TY elements of
// the result; FAKE 1 writes code * scale. Of `normalise_kept`: a lane keeps PER chunks of VECTOR neighbouring columns,
// 32 chunks apart; a group of COLUMNS is CHUNKS of them over LANES neighbouring lanes, and CHUNKS is 1 or LANES is 32.
#include "vectors.cuh"

#define NONE 0
#define ROW 1
#define COLUMNS 2
#define MEASURE 3
#define GIVEN 4

const u32 WARPS = 8;

DEVICE float scale_of(float largest) { return fmaxf(largest / 448.f, 1.17549435e-38f); }

#if PER
// A chunk as codes under a scale, or as it is.
DEVICE void store_chunk(TY* to, float (&values)[VECTOR], float scale) {
#if SCALE != NONE && SCALE != MEASURE
    const float inverse = 1.f / scale;
#pragma unroll
    for (u32 j = 0; j < VECTOR; j++) {
        values[j] *= inverse;
#if FAKE
        e4m3_t code;
        narrow(code, values[j]);
        values[j] = widen(code) * scale;
#endif
    }
#endif
    store_neighbours(to, values);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) normalise_kept(
    const TX* __restrict__ x, const TG* __restrict__ g, const TB* __restrict__ b, TY* __restrict__ y,
    float* __restrict__ scales, const i64 rows, const u32 columns, const u32 group, const float eps)
{
    wait_for_launch_before();
    const u32 lane = threadIdx.x % 32;
    // Columns that lie beyond a row are zeros.
    auto column_of = [&](u32 i) { return (i * 32 + lane) * VECTOR; };
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += (i64)gridDim.x * WARPS) {
        float kept[PER][VECTOR] = {};
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (column_of(i) < columns) load_neighbours(kept[i], x + row * columns + column_of(i));
#if NORM
        float mean = 0.f, variance = 0.f;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
#pragma unroll
            for (u32 j = 0; j < VECTOR; j++) mean += kept[i][j];
        mean = warp_sum(mean) / (float)columns;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (column_of(i) < columns)
#pragma unroll
                for (u32 j = 0; j < VECTOR; j++) {
                    kept[i][j] -= mean;
                    variance = fmaf(kept[i][j], kept[i][j], variance);
                }
        const float factor = 1.f / sqrtf(warp_sum(variance) / (float)columns + eps);
#pragma unroll
        for (u32 i = 0; i < PER; i++) {
            float gain[VECTOR], bias[VECTOR];
#if AFFINE
            if (column_of(i) < columns) {
                load_neighbours(gain, g + column_of(i));
                load_neighbours(bias, b + column_of(i));
            }
#endif
#pragma unroll
            for (u32 j = 0; j < VECTOR; j++) {
                kept[i][j] *= factor;
                if (AFFINE) kept[i][j] = fmaf(kept[i][j], gain[j], bias[j]);
            }
        }
#endif
        auto largest_of = [&](u32 first, u32 count) {
            float largest = 0.f;
#pragma unroll
            for (u32 i = first; i < first + count; i++)
#pragma unroll
                for (u32 j = 0; j < VECTOR; j++)
                    if (column_of(i) < columns) largest = fmaxf(largest, fabsf(kept[i][j]));
            return largest;
        };
        auto put = [&](u32 first, u32 count, float scale) {
#pragma unroll
            for (u32 i = first; i < first + count; i++)
                if (column_of(i) < columns) store_chunk(y + row * columns + column_of(i), kept[i], scale);
        };
#if SCALE == COLUMNS
        const u32 groups = (columns + group - 1) / group;
#pragma unroll
        for (u32 first = 0; first < PER; first += CHUNKS) {
            const float scale = scale_of(lanes_max<LANES>(largest_of(first, CHUNKS)));
            if (!FAKE && lane % LANES == 0 && column_of(first) < columns)
                scales[row * groups + column_of(first) / group] = scale;
            put(first, CHUNKS, scale);
        }
#else
        float scale = 1.f;
        if (SCALE == GIVEN) scale = scales[0];
        if (SCALE == ROW || SCALE == MEASURE) {
            const float largest = warp_max(largest_of(0, PER));
            scale = SCALE == MEASURE ? largest : scale_of(largest);
            if ((SCALE == MEASURE || !FAKE) && lane == 0) scales[row] = scale;
        }
        if (SCALE != MEASURE) put(0, PER, scale);
#endif
    }
}
#else
// What a value under a scale is stored as.
DEVICE void store_code(TY* to, float x, float scale) {
#if SCALE == NONE || SCALE == MEASURE
    store(to, x);
#elif FAKE
    e4m3_t code;
    narrow(code, x * (1.f / scale));
    store(to, widen(code) * scale);
#else
    narrow(*to, x * (1.f / scale));
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) normalise_any(
    const TX* __restrict__ x, const TG* __restrict__ g, const TB* __restrict__ b, TY* __restrict__ y,
    float* __restrict__ scales, const i64 rows, const u32 columns, const u32 group, const float eps)
{
    wait_for_launch_before();
    const u32 lane = threadIdx.x % 32;
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += (i64)gridDim.x * WARPS) {
        const TX* from = x + row * columns;
        TY* to = y + row * columns;
        float mean = 0.f, factor = 1.f;
#if NORM
        for (u32 k = lane; k < columns; k += 32) mean += load(from + k);
        mean = warp_sum(mean) / (float)columns;
        float variance = 0.f;
        for (u32 k = lane; k < columns; k += 32) {
            const float off = load(from + k) - mean;
            variance = fmaf(off, off, variance);
        }
        factor = 1.f / sqrtf(warp_sum(variance) / (float)columns + eps);
#endif
        auto value = [&](u32 k) {
            const float v = (load(from + k) - mean) * factor;
            return AFFINE ? fmaf(v, load(g + k), load(b + k)) : v;
        };
        auto largest_of = [&](u32 first, u32 last) {
            float largest = 0.f;
            for (u32 k = first + lane; k < last; k += 32) largest = fmaxf(largest, fabsf(value(k)));
            return warp_max(largest);
        };
        auto put = [&](u32 first, u32 last, float scale) {
            for (u32 k = first + lane; k < last; k += 32) store_code(to + k, value(k), scale);
        };
#if SCALE == COLUMNS
        const u32 groups = (columns + group - 1) / group;
        for (u32 at = 0; at < groups; at++) {
            const u32 first = at * group, last = min(columns, first + group);
            const float scale = scale_of(largest_of(first, last));
            if (!FAKE && lane == 0) scales[row * groups + at] = scale;
            put(first, last, scale);
        }
#else
        float scale = 1.f;
        if (SCALE == GIVEN) scale = scales[0];
        if (SCALE == ROW || SCALE == MEASURE) {
            const float largest = largest_of(0, columns);
            scale = SCALE == MEASURE ? largest : scale_of(largest);
            if ((SCALE == MEASURE || !FAKE) && lane == 0) scales[row] = scale;
        }
        if (SCALE != MEASURE) put(0, columns, scale);
#endif
    }
}
#endif

// The scale of everything from the largest magnitude of every row; one block.
extern "C" __global__ void __launch_bounds__(256) scale_of_rows(
    const float* __restrict__ largest, float* __restrict__ scale, const i64 rows)
{
    wait_for_launch_before();
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
