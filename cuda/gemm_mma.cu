// C[i] = epilogue(A[i] B[i]) on the tensor cores of every architecture: products of any shape, f32 sums; i runs over a
// batch. One tile of the result a block, a ring of STAGES slices of K in shared memory.
//
// Macros: TA, TB elements of A [M, K] and B, widened to MATH: bf16_t, half_t, or e4m3_t from Ada on; TY, TBIAS,
// TRESIDUAL, ACTIVATION, XSCALE, WSCALE as epilogue.cuh says, XSCALE COLUMNS with groups of a multiple of DEPTH columns;
// TRANSPOSED 1 where B is [N, K], 0 where it is [K, N] of 16-bit MATH; ALIGNED_A, ALIGNED_B 1 where rows are whole
// chunks; TILE_M x TILE_N the tile of a block, WARPS_M x WARPS_N its warps.
#include "epilogue.cuh"
#include "mma.cuh"
#include "strides.cuh"

struct Product {
    u32 m, n, k;
    // Columns that share a scale, where scales are of COLUMNS.
    u32 x_group, w_group;
    // The batch, and how far A and B move in it.
    Shape batch;
    Strides a, b;
};

// A slice holds 128 bytes of K a row; CHUNK elements are 16 bytes.
const u32 CHUNK = 16 / sizeof(MATH), DEPTH = 8 * CHUNK, STAGES = 3, THREADS = 32 * WARPS_M * WARPS_N;
const u32 BYTES_A = TILE_M * 128, BYTES_B = TILE_N * 128;
const u32 WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;

template <class A, class B> struct same { static const bool yes = false; };
template <class A> struct same<A, A> { static const bool yes = true; };

// The bits of two or four neighbours as MATH.
template <class T> DEVICE u32 word_of(const T* from) {
    u32 word = 0;
#pragma unroll
    for (u32 i = 0; i < 4 / sizeof(MATH); i++) {
        MATH element;
        narrow(element, widen(from[i]));
        word |= (u32)element.bits << (8 * sizeof(MATH) * i);
    }
    return word;
}

// A chunk to shared memory; `count` elements of it are there, the others are zero.
template <class T, bool ALIGNED> DEVICE void fetch_chunk(u32 to, const T* from, i32 count) {
    if (ALIGNED && same<T, MATH>::yes) {
        copy_chunk(to, from, count > 0);
        return;
    }
    T elements[CHUNK] = {};
    if (ALIGNED) {
        if (count > 0) {
            // Narrower than MATH: half a chunk, in one piece.
            const u64 piece = *(const u64*)from;
#pragma unroll
            for (u32 i = 0; i < CHUNK; i++) elements[i].bits = piece >> (8 * i);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < CHUNK; i++)
            if ((i32)i < count) elements[i] = from[i];
    }
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) words[i] = word_of(elements + i * CHUNK / 4);
    store_chunk(to, words);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product_mma(
    const TA* __restrict__ a, const TB* __restrict__ b, TY* __restrict__ y, const float* __restrict__ x_scales,
    const float* __restrict__ w_scales, const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual,
    const Product p)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    const u32 slices_a = shared_address(shared), slices_b = slices_a + STAGES * BYTES_A;
    const u32 tiles_m = (p.m + TILE_M - 1) / TILE_M, tiles_n = (p.n + TILE_N - 1) / TILE_N;
    const u32 tile = blockIdx.x % (tiles_m * tiles_n), item = blockIdx.x / (tiles_m * tiles_n);
    const u32 first_m = tile % tiles_m * TILE_M, first_n = tile / tiles_m * TILE_N;
    a += offset(item, p.batch, p.a);
    b += offset(item, p.batch, p.b);

    auto fetch = [&](u32 slice) {
        const u32 stage = slice % STAGES, first_k = slice * DEPTH;
        const u32 to_a = slices_a + stage * BYTES_A, to_b = slices_b + stage * BYTES_B;
#pragma unroll
        for (u32 at = threadIdx.x; at < TILE_M * 8; at += THREADS) {
            const u32 row = at / 8, k = first_k + at % 8 * CHUNK;
            const bool there = first_m + row < p.m && k < p.k;
            fetch_chunk<TA, ALIGNED_A>(to_a + swizzle_128(row, at % 8),
                a + (there ? (i64)(first_m + row) * p.k + k : 0), there ? (i32)(p.k - k) : 0);
        }
#pragma unroll
        for (u32 at = threadIdx.x; at < TILE_N * 8; at += THREADS) {
            if (TRANSPOSED) {
                const u32 row = at / 8, k = first_k + at % 8 * CHUNK;
                const bool there = first_n + row < p.n && k < p.k;
                fetch_chunk<TB, ALIGNED_B>(to_b + swizzle_128(row, at % 8),
                    b + (there ? (i64)(first_n + row) * p.k + k : 0), there ? (i32)(p.k - k) : 0);
            } else {
                // Panels of 64 columns, a row of K each 128 bytes.
                const u32 row = at / (TILE_N / 8), column = at % (TILE_N / 8), n = first_n + column * 8;
                const bool there = first_k + row < p.k && n < p.n;
                fetch_chunk<TB, ALIGNED_B>(to_b + column / 8 * (DEPTH * 128) + swizzle_128(row, column % 8),
                    b + (there ? (i64)(first_k + row) * p.n + n : 0), there ? (i32)(p.n - n) : 0);
            }
        }
        copies_commit();
    };

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    float sums[WARP_M / 16][WARP_N / 8][4] = {};
#if XSCALE == COLUMNS
    const u32 groups = (p.k + p.x_group - 1) / p.x_group;
    float scaled[WARP_M / 16][WARP_N / 8][4] = {};
#endif
    const u32 slices = (p.k + DEPTH - 1) / DEPTH;
    staged<STAGES - 1>(slices, fetch, [&](u32 slice) {
        const u32 from_a = slices_a + slice % STAGES * BYTES_A, from_b = slices_b + slice % STAGES * BYTES_B;
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 left[WARP_M / 16][4], right[WARP_N / 16][4];
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++)
                load_matrices(left[i], from_a + swizzle_128(warp_m + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++) {
                if (TRANSPOSED) {
                    const u32 row = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
                    load_matrices(right[j], from_b + swizzle_128(row, step * 2 + lane / 8 % 2));
                } else {
                    const u32 row = step * 16 + lane % 16, column = (warp_n + j * 16) / 8 + lane / 16;
                    load_matrices_transposed(
                        right[j], from_b + column / 8 * (DEPTH * 128) + swizzle_128(row, column % 8));
                }
            }
            multiply<MATH>(sums, left, right);
        }
#if XSCALE == COLUMNS
        // At the end of a group its sums are scaled and put aside.
        const u32 end = (slice + 1) * DEPTH;
        if (end % p.x_group == 0 || slice + 1 == slices) {
            const u32 group = slice * DEPTH / p.x_group;
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const u32 row = first_m + warp_m + i * 16 + half * 8 + lane / 4;
                    const float scale = row < p.m ? x_scales[(i64)row * groups + group] : 0.f;
#pragma unroll
                    for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
                        for (u32 c = half * 2; c < half * 2 + 2; c++) {
                            scaled[i][j][c] = fmaf(sums[i][j][c], scale, scaled[i][j][c]);
                            sums[i][j][c] = 0.f;
                        }
                }
        }
#endif
    });

    const Epilogue epilogue{x_scales, w_scales, bias, residual};
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                const u32 row = first_m + warp_m + i * 16 + c / 2 * 8 + lane / 4;
                const u32 column = first_n + warp_n + j * 8 + lane % 4 * 2 + c % 2;
                if (row < p.m && column < p.n) {
                    const i64 at = ((i64)item * p.m + row) * p.n + column;
#if XSCALE == COLUMNS
                    const float sum = scaled[i][j][c];
#else
                    const float sum = sums[i][j][c];
#endif
                    store(y + at, epilogue.of(sum, row, column, at));
                }
            }
}
