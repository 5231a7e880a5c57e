// Attention by `mma.sync`: f16 or bf16 q, k, v of head dimensions up to WIDTH, multiples of 8, f32 sums, after
// FlashAttention-2 (Dao 2024). A block takes 64 queries of a head, 16 a warp, and walks over tiles of keys and values,
// of which the next is on its way while one is multiplied.
//
// Macros: TX elements of q, k, v and the result; WIDTH 32, 64 or 128; KEYS a tile.
#include "mma.cuh"

// Bytes of a row in shared memory: 16 more than the row, so that eight rows meet no bank twice.
const u32 ROW = WIDTH * 2 + 16, TILE = KEYS * ROW, CHUNKS = WIDTH / 8;
const float MASKED = -1e30f;

DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE u32 pack(bf16_t, float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE u32 pack(half_t, float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Rows of `width` elements to shared memory; zeros where there is nothing.
DEVICE void copy_rows(u32 to, const TX* from, u32 rows, u32 there, u32 width) {
    for (u32 i = threadIdx.x; i < rows * CHUNKS; i += 128) {
        const u32 row = i / CHUNKS, chunk = i % CHUNKS;
        const bool exists = row < there && chunk * 8 < width;
        copy_chunk(to + row * ROW + chunk * 16, exists ? from + (i64)row * width + chunk * 8 : from, exists);
    }
}

extern "C" __global__ void __launch_bounds__(128) attend_mma(
    const TX* __restrict__ q, const TX* __restrict__ k, const TX* __restrict__ v, TX* __restrict__ y, const u32 tiles,
    const u32 n, const u32 m, const u32 d, const u32 e, const float scale)
{
    extern __shared__ __align__(16) u8 shared[];
    const u32 queries = shared_address(shared), keys = queries + 64 * ROW, values = keys + 2 * TILE;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 head = blockIdx.x / tiles;
    const u32 first = (blockIdx.x - (u32)head * tiles) * 64, key_tiles = (m + KEYS - 1) / KEYS;
    const TX *from_keys = k + head * m * d, *from_values = v + head * m * e;
    copy_rows(queries, q + (head * n + first) * d, 64, n - first, d);
    if (key_tiles > 0) {
        copy_rows(keys, from_keys, KEYS, m, d);
        copy_rows(values, from_values, KEYS, m, e);
    }
    copies_commit();

    float sums[WIDTH / 8][4] = {}, top[2] = {MASKED, MASKED}, under[2] = {0.f, 0.f};
    u32 query[WIDTH / 16][4];
    for (u32 tile = 0; tile < key_tiles; tile++) {
        const u32 key = tile * KEYS, buffer = tile % 2 * TILE, other = TILE - buffer;
        copies_wait<0>();
        // What was copied is there for all, and the other buffers have been read by all.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            copy_rows(keys + other, from_keys + (i64)(key + KEYS) * d, KEYS, m - key - KEYS, d);
            copy_rows(values + other, from_values + (i64)(key + KEYS) * e, KEYS, m - key - KEYS, e);
        }
        copies_commit();
        if (tile == 0) {
#pragma unroll
            for (u32 step = 0; step < WIDTH / 16; step++)
                load_matrices(query[step], queries + (warp * 16 + lane % 16) * ROW + (step * 2 + lane / 16) * 16);
        }
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (u32 step = 0; step < WIDTH / 16; step++)
#pragma unroll
            for (u32 pair = 0; pair < KEYS / 16; pair++) {
                u32 b[4];
                load_matrices(b, keys + buffer + (pair * 16 + lane / 16 * 8 + lane % 8) * ROW
                    + (step * 2 + lane / 8 % 2) * 16);
                Mma<TX>::add(scores[pair * 2], query[step], b[0], b[1]);
                Mma<TX>::add(scores[pair * 2 + 1], query[step], b[2], b[3]);
            }
        float most[2] = {top[0], top[1]};
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const bool there = key + j * 8 + lane % 4 * 2 + i % 2 < m;
                scores[j][i] = there ? scores[j][i] * scale : MASKED;
                most[i / 2] = fmaxf(most[i / 2], scores[j][i]);
            }
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            most[row] = fmaxf(most[row], __shfl_xor_sync(~0u, most[row], 1));
            most[row] = fmaxf(most[row], __shfl_xor_sync(~0u, most[row], 2));
            const float shrink = exp2_fast(top[row] - most[row]);
            top[row] = most[row];
            under[row] *= shrink;
#pragma unroll
            for (u32 j = 0; j < WIDTH / 8; j++) {
                sums[j][row * 2] *= shrink;
                sums[j][row * 2 + 1] *= shrink;
            }
        }
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                scores[j][i] = exp2_fast(scores[j][i] - top[i / 2]);
                under[i / 2] += scores[j][i];
            }
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 weights[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++)
                weights[j] = pack(TX(), scores[step * 2 + j / 2][j % 2 * 2], scores[step * 2 + j / 2][j % 2 * 2 + 1]);
#pragma unroll
            for (u32 pair = 0; pair < WIDTH / 16; pair++) {
                u32 b[4];
                load_matrices_transposed(b, values + buffer + (step * 16 + lane % 16) * ROW
                    + (pair * 2 + lane / 16) * 16);
                Mma<TX>::add(sums[pair * 2], weights, b[0], b[1]);
                Mma<TX>::add(sums[pair * 2 + 1], weights, b[2], b[3]);
            }
        }
    }
    copies_wait<0>();
#pragma unroll
    for (u32 row = 0; row < 2; row++) {
        under[row] += __shfl_xor_sync(~0u, under[row], 1);
        under[row] += __shfl_xor_sync(~0u, under[row], 2);
        const float over = under[row] > 0.f ? 1.f / under[row] : 0.f;
        const u32 token = first + warp * 16 + row * 8 + lane / 4;
        if (token >= n) continue;
        TX* to = y + (head * n + token) * e + lane % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; j++)
            if (j * 8 < e) *(u32*)(to + j * 8) = pack(TX(), sums[j][row * 2] * over, sums[j][row * 2 + 1] * over);
    }
}
