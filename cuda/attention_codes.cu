// e4m3 codes of keys and values for attention: k and v [heads, m, WIDTH] in bf16 as attention_codes.cuh lays codes out.
//
// - `sum_keys`: of every stretch of tokens of a head, the sums of k and the largest magnitudes of v by columns.
// - `make_codes`: keys less their mean, under a scale a key block of `block` slots; values under a scale a column.
//   Joins the stretches first. Centroids are coded by the mean and the scales of the keys that they stand for.
// - `weigh_centroids`: what every centroid adds to its score.
//
// Macros: WIDTH 64 or 128.
#include "attention_codes.cuh"
#include "blocks.cuh"
#include "rows.cuh"
#include "vectors.cuh"

// Threads a token, each with 8 neighbouring columns; slots that a block codes at once.
const u32 LANES = WIDTH / 8, PIECE = 128;

extern "C" __global__ void __launch_bounds__(256) sum_keys(
    const bf16_t* __restrict__ k, const bf16_t* __restrict__ v, float* __restrict__ parts, const u32 stretch,
    const u32 m)
{
    wait_for_launch_before();
    __shared__ float found[2][256 / LANES][WIDTH];
    const u32 column = threadIdx.x % LANES * 8, row = threadIdx.x / LANES, head = blockIdx.y;
    const u32 end = min(m, (blockIdx.x + 1) * stretch);
    float sums[8] = {}, most[8] = {};
#pragma unroll 4
    for (u32 token = blockIdx.x * stretch + row; token < end; token += 256 / LANES) {
        const i64 at = ((i64)head * m + token) * WIDTH + column;
        float key[8], value[8];
        load_neighbours(key, k + at);
        load_neighbours(value, v + at);
#pragma unroll
        for (u32 i = 0; i < 8; i++) sums[i] += key[i], most[i] = fmaxf(most[i], fabsf(value[i]));
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) found[0][row][column + i] = sums[i], found[1][row][column + i] = most[i];
    __syncthreads();
    if (threadIdx.x >= 2 * WIDTH) return;
    const u32 which = threadIdx.x / WIDTH, own = threadIdx.x % WIDTH;
    float all = 0.f;
#pragma unroll
    for (u32 i = 0; i < 256 / LANES; i++) {
        const float one = found[which][i][own];
        all = which ? fmaxf(all, one) : all + one;
    }
    parts[((i64)(head * gridDim.x + blockIdx.x) * 2 + which) * WIDTH + own] = all;
}

// `centres` and `columns` are written if `first`, by the first block of a head. `block` is a power of two.
extern "C" __global__ void __launch_bounds__(4 * WIDTH, WIDTH == 64 ? 4 : 1) make_codes(
    const bf16_t* __restrict__ k, const bf16_t* __restrict__ v, const float* __restrict__ parts,
    float* __restrict__ centres, float* __restrict__ columns, u8* __restrict__ key_codes, u8* __restrict__ value_codes,
    float* __restrict__ scales, const __grid_constant__ Cut cut, const u32 stretches, const u32 block, const u32 blocks,
    const u32 pieces, const u32 tokens, const u32 m, const u32 first)
{
    wait_for_launch_before();
    // Sums and magnitudes of every eighth stretch, then the mean key and what columns of values are multiplied by.
    __shared__ float joined[8][2 * WIDTH];
    __shared__ float centre[WIDTH], unit[WIDTH];
    // The token of the first of 16 slots and the end of its block; bits of the largest magnitude of a key block.
    __shared__ Range found[PIECE / 16];
    __shared__ u32 largest[PIECE / 16];
    const u32 head = blockIdx.y, lane = threadIdx.x % 32, shift = 31 - __clz(block);
    // Keys: 8 columns of the slots `row`, 32 further and so on. Values: a warp has 64 columns of 16 slots, lane 4o + t
    // columns 8o to 8o + 7 of slots 2t, 2t + 1, 2t + 8 and 2t + 9.
    const u32 octet = threadIdx.x % LANES, row = threadIdx.x / LANES;
    const u32 group = threadIdx.x / 32 / (WIDTH / 64), column = threadIdx.x / 32 % (WIDTH / 64) * 64 + lane / 4 * 8;
    const bf16_t* const from_k = k + (i64)head * tokens * WIDTH + octet * 8;
    const bf16_t* const from_v = v + (i64)head * tokens * WIDTH + column;
    const u32 four = threadIdx.x % (WIDTH / 2) * 4, eighth = threadIdx.x / (WIDTH / 2);
    float all[4] = {};
#pragma unroll 5
    for (u32 i = eighth; i < stretches; i += 8) {
        const float4 one = *(const float4*)(parts + (i64)(head * stretches + i) * 2 * WIDTH + four);
        const float own[4] = {one.x, one.y, one.z, one.w};
#pragma unroll
        for (u32 j = 0; j < 4; j++) all[j] = four < WIDTH ? all[j] + own[j] : fmaxf(all[j], own[j]);
    }
    for (u32 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        // Nobody reads what was found in the piece before any more.
        __syncthreads();
        if (threadIdx.x < PIECE / 16) {
            const u32 slot = piece * PIECE + threadIdx.x * 16, inside = slot & block - 1;
            Range range = {0, 0};
            if (slot >> shift < blocks) {
                const Range all = tokens_of(cut, slot >> shift);
                range = {all.begin + (i32)inside, all.end};
            }
            found[threadIdx.x] = range;
            largest[threadIdx.x] = 0;
        }
        __syncthreads();
        uint4 raw_k[4], raw_v[4];
        u32 ones = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 slot = 32 * i + row, place = lane % 4 * 2 + i % 2 + i / 2 * 8;
            const Range keys = found[slot / 16], values = found[group];
            const i32 key = min(keys.begin + (i32)(slot % 16), keys.end - 1), value = values.begin + (i32)place;
            raw_k[i] = raw_v[i] = {0, 0, 0, 0};
            if (key >= 0) raw_k[i] = *(const uint4*)(from_k + (i64)key * WIDTH);
            if (value < values.end) {
                raw_v[i] = *(const uint4*)(from_v + (i64)value * WIDTH);
                ones |= 0x38 << 8 * i;
            }
        }
        if (piece == blockIdx.x) {
            *(float4*)&joined[eighth][four] = {all[0], all[1], all[2], all[3]};
            __syncthreads();
            if (threadIdx.x < WIDTH) {
                float sum = 0.f, most = SMALLEST_AMAX;
#pragma unroll
                for (u32 i = 0; i < 8; i++)
                    sum += joined[i][threadIdx.x], most = fmaxf(most, joined[i][WIDTH + threadIdx.x]);
                const float mean = sum / (float)m, scale = most / 448.f;
                centre[threadIdx.x] = mean;
                unit[threadIdx.x] = 1.f / scale;
                if (first && piece == 0) {
                    centres[head * WIDTH + threadIdx.x] = mean;
                    columns[head * WIDTH + threadIdx.x] = scale;
                }
            }
            __syncthreads();
        }
        const i64 slot_0 = ((i64)head * pieces + piece) * PIECE;
        auto key_of = [&](u32 i, u32 j) { return bf16_of(raw_k[i], j) - centre[octet * 8 + j]; };
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 slot = 32 * i + row;
            float most = 0.f;
#pragma unroll
            for (u32 j = 0; j < 8; j++) most = fmaxf(most, fabsf(key_of(i, j)));
            // The slots of a warp lie in one block. Magnitudes are ordered as their bits are.
            most = warp_max(most);
            if (lane == 0) atomicMax(largest + (slot >> shift), __float_as_uint(most));
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 slot = 32 * i + row, of = piece * PIECE + slot >> shift;
            const float scale = fmaxf(__uint_as_float(largest[slot >> shift]), SMALLEST_AMAX) / 448.f;
            if (octet == 0 && (slot & block - 1) == 0 && of < blocks) scales[(i64)head * blocks + of] = scale;
            const float inverse = 1.f / scale;
            // Columns WIDTH / 4 * t + 4j + i.
            const u32 t = octet / (WIDTH / 32), j = octet % (WIDTH / 32) * 2;
            u8* const to = key_codes + (slot_0 + slot / 8 * 8) * WIDTH + slot % 8 * 16 + 4 * t;
#pragma unroll
            for (u32 half = 0; half < 2; half++)
                *(u32*)(to + (j + half) * 128) = four_codes(
                    key_of(i, 4 * half) * inverse, key_of(i, 4 * half + 1) * inverse,
                    key_of(i, 4 * half + 2) * inverse, key_of(i, 4 * half + 3) * inverse);
        }
        u8* const to = value_codes + (slot_0 + group * 16) * VALUE_ROWS;
#pragma unroll
        for (u32 part = 0; part < 2; part++) {
            u32 words[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 own = part * 4 + j;
                const float inverse = unit[column + own];
                words[j] = four_codes(bf16_of(raw_v[0], own) * inverse, bf16_of(raw_v[1], own) * inverse,
                    bf16_of(raw_v[2], own) * inverse, bf16_of(raw_v[3], own) * inverse);
            }
            transpose_words(words);
            *(uint4*)(to + (column + part * 4 + lane % 4) * 16) = {words[0], words[1], words[2], words[3]};
        }
        if (column < 64) *(u32*)(to + WIDTH * 16 + lane * 4) = ones;
    }
}

extern "C" __global__ void __launch_bounds__(256) weigh_centroids(
    Centroid* __restrict__ table, const __grid_constant__ Cut key_cut, const __grid_constant__ Cut centroid_cut,
    const u32 centroids)
{
    wait_for_launch_before();
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= centroids) return;
    const Range range = tokens_of(centroid_cut, i);
    half_t bias;
    narrow(bias, log2f((float)(range.end - range.begin)) / SPAN);
    table[i] = {bias.bits, (u32)place_of(key_cut, range.begin).block};
}
