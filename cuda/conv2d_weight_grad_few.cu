// dw = gᵀ x over pixels x [pixels, C] and cotangents g [pixels, OUTPUTS]: the weights of pointwise convolutions with few
// outputs, where reading x is all there is to do. A block has a part of the pixels, a thread eight channels of every ROWS-th
// of them and all outputs; sums of threads with the same channels are added in one order. Parts lie one after the other,
// [parts, OUTPUTS, C].
//
// Macros: TX the elements of x and g, bf16_t or half_t; TY of the sums; OUTPUTS up to 4; LANES that share a pixel, C / 8;
// ROWS pixels at once.
#include "vectors.cuh"

const u32 THREADS = ROWS * LANES, CHANNELS = LANES * 8;

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_weight_grad_few(
    const TX* __restrict__ x, const TX* __restrict__ g, TY* __restrict__ y, const u32 pixels, const u32 part)
{
    wait_for_launch_before();
    __shared__ float shared[OUTPUTS * 8][THREADS];
    const u32 lane = threadIdx.x % LANES, row = threadIdx.x / LANES;
    const u32 first = blockIdx.x * part, last = min(pixels, first + part);
    float sums[OUTPUTS][8] = {};
#pragma unroll 4
    for (u32 pixel = first + row; pixel < last; pixel += ROWS) {
        float values[8];
        load_neighbours(values, x + (i64)pixel * CHANNELS + lane * 8);
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; o++) {
            const float slope = load(g + (i64)pixel * OUTPUTS + o);
#pragma unroll
            for (u32 i = 0; i < 8; i++) sums[o][i] = fmaf(slope, values[i], sums[o][i]);
        }
    }
#pragma unroll
    for (u32 o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (u32 i = 0; i < 8; i++) shared[o * 8 + i][threadIdx.x] = sums[o][i];
    __syncthreads();
    for (u32 at = threadIdx.x; at < OUTPUTS * CHANNELS; at += THREADS) {
        const u32 output = at / CHANNELS, channel = at % CHANNELS;
        float sum = 0.f;
        for (u32 r = 0; r < ROWS; r++) sum += shared[output * 8 + channel % 8][r * LANES + channel / 8];
        store(y + (i64)blockIdx.x * (OUTPUTS * CHANNELS) + at, sum);
    }
}
