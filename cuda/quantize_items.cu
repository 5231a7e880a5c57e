// Items x [N, elements] as e4m3 codes of act(x) under one scale each, max(amax / 448, 2^-126): `measure_items` gives the
// largest magnitudes of chunks, `encode_items` takes the largest of them, or of those that another kernel has measured.
// Blocks in x share an item, blocks in y are items.
//
// Macros: TX elements of x; ACTIVATION a function of activations.cuh; VECTOR neighbours at a time, which divide items.
#include "activations.cuh"
#include "vectors.cuh"

const u32 THREADS = 256, AHEAD = 4;

// Whose largest magnitudes stand where. An item has `units`; tiles of `tile` units run on from item to item, and a tile
// gives `per_tile` magnitudes of each item that it reaches into. An item has room for `room`.
struct Measures { u32 units, tile, per_tile, room; };

// The largest of a block, in every thread.
DEVICE float block_max(float x) {
    __shared__ float parts[THREADS / 32];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < THREADS / 32; i++) x = fmaxf(x, parts[i]);
    return x;
}

// Calls `use` with the place and the values of every VECTOR of the block's part of an item, AHEAD of them read at once.
template <class Use> DEVICE void each_vector(const TX* x, i64 elements, Use use) {
    const i64 step = (i64)gridDim.x * THREADS * VECTOR;
    i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    for (; at + (AHEAD - 1) * step < elements; at += AHEAD * step) {
        float values[AHEAD][VECTOR];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) load_neighbours(values[i], x + at + i * step);
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) use(at + i * step, values[i]);
    }
    for (; at < elements; at += step) {
        float values[VECTOR];
        load_neighbours(values, x + at);
        use(at, values);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) measure_items(
    const TX* __restrict__ x, float* __restrict__ largest, const i64 elements)
{
    wait_for_launch_before();
    float most = 0.f;
    each_vector(x + blockIdx.y * elements, elements, [&](i64, float (&values)[VECTOR]) {
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) most = fmaxf(most, fabsf(ACTIVATION(values[i])));
    });
    most = block_max(most);
    if (threadIdx.x == 0) largest[blockIdx.y * gridDim.x + blockIdx.x] = most;
}

extern "C" __global__ void __launch_bounds__(THREADS) encode_items(
    const TX* __restrict__ x, const float* __restrict__ largest, e4m3_t* __restrict__ y, float* __restrict__ scales,
    const i64 elements, const Measures m)
{
    wait_for_launch_before();
    const u32 item = blockIdx.y;
    const u64 first = (u64)item * m.units;
    const u32 count = ((u32)((first + m.units - 1) / m.tile - first / m.tile) + 1) * m.per_tile;
    float most = 0.f;
    for (u32 i = threadIdx.x; i < count; i += THREADS) most = fmaxf(most, largest[(u64)item * m.room + i]);
    const float scale = fmaxf(block_max(most) / 448.f, 1.17549435e-38f), inverse = 1.f / scale;
    if (blockIdx.x == 0 && threadIdx.x == 0) scales[item] = scale;
    y += item * elements;
    each_vector(x + item * elements, elements, [&](i64 at, float (&values)[VECTOR]) {
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) values[i] = ACTIVATION(values[i]) * inverse;
        store_neighbours(y + at, values);
    });
}
