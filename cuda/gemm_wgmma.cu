// C = epilogue(A Bᵀ) on Hopper's tensor cores: A [M, K], B [N, K], rows of both whole chunks of 16 bytes, rows of C too.
//
// A persistent grid walks over tiles of C. One thread keeps a ring of slices of K, 128 bytes wide, filled by the copy
// engine; warpgroups, 64 rows of the tile each, multiply them and write C through two panels of shared memory each.
// Ragged edges: the copy engine reads zeros and drops what lies outside.
//
// Macros: MATH e4m3_t, bf16_t or half_t; TY, TBIAS, TRESIDUAL, ACTIVATION, XSCALE, WSCALE as epilogue.cuh says; with
// XSCALE COLUMNS, groups of a multiple of DEPTH columns are summed apart and scaled one by one; TILE_M x TILE_N the
// tile of a block, STAGES the slices of the ring; PRODUCER, CONSUMER registers a thread, 0 for those of the launch.
#include "epilogue.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 GROUPS = TILE_M / 64, THREADS = 128 * (GROUPS + 1);
const u32 DEPTH = 128 / sizeof(MATH);
const u32 BYTES_A = TILE_M * 128, BYTES_B = TILE_N * 128, SLICE = BYTES_A + BYTES_B;
// What results of 16 bits are packed to.
template <class T> struct Narrow { typedef T type; };
template <> struct Narrow<float> { typedef bf16_t type; };
typedef Narrow<TY>::type PAIRED;
// A panel: 64 rows of 128 bytes.
const u32 PANEL = 64 * 128, PANEL_COLUMNS = 128 / sizeof(TY), PANELS = TILE_N / PANEL_COLUMNS;

// One step of 32 bytes of K.
template <class T> struct Step;
template <> struct Step<e4m3_t> {
    static __device__ __forceinline__ void add(float (&d)[TILE_N / 2], u64 a, u64 b, bool add) {
        Wgmma<TILE_N>::e4m3(d, a, b, add);
    }
};
template <> struct Step<bf16_t> {
    static __device__ __forceinline__ void add(float (&d)[TILE_N / 2], u64 a, u64 b, bool add) {
        Wgmma<TILE_N>::bf16<0>(d, a, b, add);
    }
};
template <> struct Step<half_t> {
    static __device__ __forceinline__ void add(float (&d)[TILE_N / 2], u64 a, u64 b, bool add) {
        Wgmma<TILE_N>::f16<0>(d, a, b, add);
    }
};

// Which tile comes when: bands of 1024 rows, down a band before along it, so that neighbours in time share operands.
struct Raster {
    u32 tiles_m, tiles_n;
    __device__ __forceinline__ void at(u32 tile, u32& m, u32& n) const {
        const u32 BAND = 1024 / TILE_M, band = tile / (BAND * tiles_n), rest = tile - band * BAND * tiles_n;
        const u32 height = min(BAND, tiles_m - band * BAND);
        n = rest / height;
        m = band * BAND + rest - n * height;
    }
};

// This thread's part of a panel of 64 rows to shared memory.
DEVICE void write_panel(u32 panel, const float* d) {
    typedef Pair<PAIRED> Two;
    const u32 lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
#pragma unroll
    for (u32 j = 0; j < PANEL_COLUMNS / 8; j++, d += 4) {
        if (sizeof(TY) == 4) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 chunk = j * 2 + lane % 4 / 2;
                const u32 to = panel + swizzle_128(first + half * 8 + lane / 4, chunk) + lane % 2 * 8;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                    ::"r"(to), "f"(d[half * 2]), "f"(d[half * 2 + 1]) : "memory");
            }
        } else if (j % 2 == 0) {
            store_matrices(panel + swizzle_128(first + lane % 16, j + lane / 16), Two::of(d[0], d[1]),
                Two::of(d[2], d[3]), Two::of(d[4], d[5]), Two::of(d[6], d[7]));
        }
    }
}

// What the epilogue adds to the panel of columns from `first`, two neighbours in each row of the thread; zeros where
// there is nothing.
DEVICE void load_residual(
    float2 (&to)[PANEL_COLUMNS / 8][2], const TRESIDUAL* residual, u32 row, u32 first, u32 m, u32 n)
{
    const u32 column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 j = 0; j < PANEL_COLUMNS / 8; j++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            to[j][half] = {0.f, 0.f};
            if (RESIDUAL && row + half * 8 < m && column + j * 8 < n)
                to[j][half] = load_pair(residual + (i64)(row + half * 8) * n + column + j * 8);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product_wgmma(
    const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
    const __grid_constant__ TensorMap map_y, const float* __restrict__ x_scales, const float* __restrict__ w_scales,
    const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual, const u32 rows, const u32 columns,
    const u32 depth, const u32 x_group)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 ring = shared_address(shared), panels = ring + STAGES * SLICE, full = panels + GROUPS * 2 * PANEL;
    const u32 empty = full + 8 * STAGES;
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        tensor_map_prefetch(&map_a);
        tensor_map_prefetch(&map_b);
        tensor_map_prefetch(&map_y);
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 4 * GROUPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const Raster raster{(rows + TILE_M - 1) / TILE_M, (columns + TILE_N - 1) / TILE_N};
    const u32 tiles = raster.tiles_m * raster.tiles_n, slices = (depth + DEPTH - 1) / DEPTH;

    if (group == GROUPS) {
#if PRODUCER
        registers_lower<PRODUCER>();
#endif
        if (warp == 4 * GROUPS && elect_one()) {
            u32 stage = 0, phase = 0;
            for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                u32 m, n;
                raster.at(tile, m, n);
                for (u32 slice = 0; slice < slices; slice++) {
                    const u32 to = ring + stage * SLICE;
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    barrier_expect(full + 8 * stage, SLICE);
                    copy_box(to, &map_a, full + 8 * stage, slice * DEPTH, m * TILE_M, KEEP_NORMAL);
                    copy_box(to + BYTES_A, &map_b, full + 8 * stage, slice * DEPTH, n * TILE_N, KEEP_LONG);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
        }
        return;
    }
#if PRODUCER
    registers_raise<CONSUMER>();
#endif
    // A warpgroup has two panels and writes them in turn; one of its threads issues the copies.
    const bool issues = threadIdx.x % 128 == 0;
    const u32 own_panels = panels + group * 2 * PANEL;
    u32 turn = 0;
    u32 stage = 0, phase = 0;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        u32 m, n;
        raster.at(tile, m, n);
        const u32 first_row = m * TILE_M + group * 64, row = first_row + warp % 4 * 16 + lane / 4;
        float sums[TILE_N / 2];
#if XSCALE == COLUMNS
        float scaled[TILE_N / 2];
#pragma unroll
        for (u32 i = 0; i < TILE_N / 2; i++) scaled[i] = 0.f;
        const u32 slices_a_group = x_group / DEPTH, groups = (depth + x_group - 1) / x_group;
        u32 of_group = 0, scale_at = 0;
#endif
        for (u32 slice = 0; slice < slices; slice++) {
            barrier_wait(full + 8 * stage, phase);
            const u64 a = operand_k128(ring + stage * SLICE + group * PANEL);
            const u64 b = operand_k128(ring + stage * SLICE + BYTES_A);
#if XSCALE == COLUMNS
            const bool fresh = of_group == 0;
#else
            const bool fresh = slice == 0;
#endif
            pin(sums);
            products_fence();
#pragma unroll
            for (u32 step = 0; step < 4; step++)
                Step<MATH>::add(sums, a + step * 2, b + step * 2, step != 0 || !fresh);
            products_commit();
            pin(sums);
#if XSCALE == COLUMNS
            products_wait<0>();
            pin(sums);
            if (lane == 0) barrier_arrive(empty + 8 * stage);
            if (++of_group == slices_a_group || slice + 1 == slices) {
                const float top = row < rows ? x_scales[(i64)row * groups + scale_at] : 0.f;
                const float bottom = row + 8 < rows ? x_scales[(i64)(row + 8) * groups + scale_at] : 0.f;
#pragma unroll
                for (u32 i = 0; i < TILE_N / 2; i++)
                    scaled[i] = fmaf(sums[i], i % 4 < 2 ? top : bottom, scaled[i]);
                of_group = 0;
                scale_at++;
            }
#else
            // One slice stays in flight; the one before is free.
            products_wait<1>();
            if (slice > 0 && lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
#endif
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        float2 extra[PANEL_COLUMNS / 8][2];
        load_residual(extra, residual, row, n * TILE_N, rows, columns);
#if XSCALE == COLUMNS
        float(&result)[TILE_N / 2] = scaled;
#else
        products_wait<0>();
        pin(sums);
        if (lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
        float(&result)[TILE_N / 2] = sums;
#endif
        float scale[2] = {1.f, 1.f};
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (XSCALE == ROW && row + half * 8 < rows) scale[half] = x_scales[row + half * 8];
            if (XSCALE == TENSOR) scale[half] = x_scales[0];
            if (WSCALE == TENSOR) scale[half] *= w_scales[0];
        }
#pragma unroll
        for (u32 p = 0; p < PANELS; p++) {
            const u32 first = n * TILE_N + p * PANEL_COLUMNS;
            if (first < columns) {
#pragma unroll
                for (u32 j = 0; j < PANEL_COLUMNS / 8; j++) {
                    const u32 column = first + j * 8 + lane % 4 * 2;
                    float2 w = {1.f, 1.f}, plus = {0.f, 0.f};
                    if (WSCALE == ROW && column < columns) w = load_pair(w_scales + column);
                    if (BIAS && column < columns) plus = load_pair(bias + column);
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        float* pair = result + (p * (PANEL_COLUMNS / 8) + j) * 4 + half * 2;
                        pair[0] = ACTIVATION(fmaf(pair[0] * scale[half], w.x, plus.x));
                        pair[1] = ACTIVATION(fmaf(pair[1] * scale[half], w.y, plus.y));
                        if (RESIDUAL) pair[0] += extra[j][half].x, pair[1] += extra[j][half].y;
                    }
                }
            }
            // What comes next is on its way while this panel is written.
            if (p + 1 < PANELS) load_residual(extra, residual, row, first + PANEL_COLUMNS, rows, columns);
            if (first >= columns) continue;
            const u32 panel = own_panels + turn * PANEL;
            if (issues) writes_wait_read<1>();
            named_sync(1 + group, 128);
            write_panel(panel, result + p * (PANEL_COLUMNS / 2));
            fence_shared_for_async();
            named_sync(1 + group, 128);
            if (issues) {
                write_box(&map_y, panel, first, first_row);
                writes_commit();
            }
            turn ^= 1;
        }
    }
    if (issues) writes_wait<0>();
}
