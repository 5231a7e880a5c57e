// C = epilogue(A Bᵀ) on Hopper's tensor cores: A [M, K], B [N, K], rows of both whole chunks of 16 bytes, rows of C too.
//
// A persistent grid walks over tiles of C. One thread keeps a ring of slices of K, 128 bytes wide, filled by the copy
// engine, another the scales and biases of the columns of a tile; warpgroups multiply the slices and write C through
// BUFFERS panels of shared memory each. Either the warpgroups share a tile, 64 rows each, or (ALTERNATE) they take tiles
// in turn, so that one multiplies while the other writes. Ragged edges: the copy engine reads zeros and drops what lies
// outside.
//
// Macros: MATH e4m3_t, bf16_t or half_t; TY, TBIAS, TRESIDUAL, ACTIVATION, XSCALE, WSCALE as epilogue.cuh says; with
// XSCALE COLUMNS, groups of a multiple of DEPTH columns are summed apart and scaled one by one; QUANTIZE 0, or how many
// columns share a scale of e4m3 results; TILE_M x TILE_N a tile, STAGES the slices of the ring; ALTERNATE; BUFFERS, all
// panels of a warpgroup where a residual as wide as C is copied to them in advance; PRODUCER, CONSUMER registers a
// thread, 0 for those of the launch; HEAD 0, or the columns of a head where C is the joint projection of an attention,
// whose q, k and v are written apart, see heads.cuh.
#include "epilogue.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"
#if HEAD
#include "heads.cuh"
#else
const u32 AFFINE = 0;
#endif

// Warpgroups that multiply, and rows of a tile that one of them owns.
const u32 GROUPS = ALTERNATE ? 2 : TILE_M / 64, ROWS = ALTERNATE ? TILE_M : 64, THREADS = 128 * (GROUPS + 1);
// Warps that work on a tile.
const u32 OWNERS = 4 * (ALTERNATE ? 1 : GROUPS);
const u32 DEPTH = 128 / sizeof(MATH);
const u32 BYTES_A = TILE_M * 128, BYTES_B = TILE_N * 128, SLICE = BYTES_A + BYTES_B;
// 64 rows of C at a time: so many a warpgroup, each with sums of its own.
const u32 PARTS = ROWS / 64;
// What results of 16 bits are packed to.
template <class T> struct Narrow { typedef T type; };
template <> struct Narrow<float> { typedef bf16_t type; };
template <> struct Narrow<e4m3_t> { typedef bf16_t type; };
typedef Narrow<TY>::type PAIRED;
// A panel: 64 rows of 128 bytes.
const u32 PANEL = 64 * 128, PANEL_COLUMNS = 128 / sizeof(TY), PANELS = TILE_N / PANEL_COLUMNS;
// Whether the residual comes through the panels, by the copy engine, while the tile is multiplied.
#define STAGED (RESIDUAL && sizeof(TRESIDUAL) == sizeof(TY) && BUFFERS == PARTS * PANELS)

#if HEAD
static_assert(TILE_N % HEAD == 0 && sizeof(TY) == 2 && !QUANTIZE && !RESIDUAL, "tiles hold whole heads of 16 bits");
// The named barrier behind which g and b of the norms are read.
const u32 AFFINE_COME = 8;
#endif

// What is added to and multiplied into columns: a copy a tile that is worked on.
const u32 BYTES_W = WSCALE == ROW ? TILE_N * 4 : 0, BYTES_BIAS = BIAS ? TILE_N * sizeof(TBIAS) : 0;
const u32 COLUMN_BYTES = BYTES_W + BYTES_BIAS, COLUMN_COPIES = ALTERNATE ? 2 : 1;

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

// Two codes, the first below.
DEVICE u32 codes_of_pair(float a, float b) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(b), "f"(a));
    return pair;
}

// This thread's part of a panel of 64 rows to shared memory.
DEVICE void write_panel(u32 panel, const float* d) {
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
        } else if (sizeof(TY) == 2 && j % 2 == 0) {
            typedef Pair<PAIRED> Two;
            store_matrices(panel + swizzle_128(first + lane % 16, j + lane / 16), Two::of(d[0], d[1]),
                Two::of(d[2], d[3]), Two::of(d[4], d[5]), Two::of(d[6], d[7]));
        } else if (sizeof(TY) == 1 && j % 2 == 0) {
            // Neighbouring lanes swap pairs, so that each writes four codes: of columns 8j on, or of the eight after.
            const u32 odd = lane % 2;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 here = codes_of_pair(d[half * 2], d[half * 2 + 1]);
                const u32 next = codes_of_pair(d[4 + half * 2], d[5 + half * 2]);
                const u32 other = __shfl_xor_sync(~0u, odd ? here : next, 1);
                const u32 four = odd ? other | next << 16 : here | other << 16;
                const u32 to = panel + swizzle_128(first + half * 8 + lane / 4, j / 2);
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + odd * 8 + lane % 4 / 2 * 4), "r"(four) : "memory");
            }
        }
    }
}

// This thread's part of what stands in a panel of 64 rows, as wide as results.
DEVICE void read_panel(float2 (&to)[PANEL_COLUMNS / 8][2], u32 panel) {
    const u32 lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
#pragma unroll
    for (u32 j = 0; j < PANEL_COLUMNS / 8; j++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = first + half * 8 + lane / 4;
            if (sizeof(TY) == 4) {
                const u32 at = panel + swizzle_128(row, j * 2 + lane % 4 / 2) + lane % 2 * 8;
                asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(to[j][half].x), "=f"(to[j][half].y) : "r"(at));
            } else {
                u32 both;
                asm volatile("ld.shared.u32 %0, [%1];" : "=r"(both) : "r"(panel + swizzle_128(row, j) + lane % 4 * 4));
                typedef Narrow<TRESIDUAL>::type Half;
                to[j][half] = {widen(Half{(u16)both}), widen(Half{(u16)(both >> 16)})};
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

#if QUANTIZE
static_assert(TILE_N % QUANTIZE == 0 && QUANTIZE % PANEL_COLUMNS == 0, "tiles hold whole groups");
// This thread's part of QUANTIZE columns from group `at` on, both rows, to what its codes stand for, and the scales.
DEVICE void to_codes(float* d, float* scales, u32 row, u32 rows, u32 at, u32 groups) {
    float most[2] = {0.f, 0.f};
#pragma unroll
    for (u32 i = 0; i < QUANTIZE / 2; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], fabsf(d[i]));
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float scale = fmaxf(lanes_max<4>(most[half]) / 448.f, 1.17549435e-38f), over = 1.f / scale;
        if (threadIdx.x % 4 == 0 && row + half * 8 < rows) scales[(i64)(row + half * 8) * groups + at] = scale;
#pragma unroll
        for (u32 i = 0; i < QUANTIZE / 2; i += 4) d[i + half * 2] *= over, d[i + half * 2 + 1] *= over;
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) product_wgmma(
    const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
    const __grid_constant__ TensorMap map_y, const __grid_constant__ TensorMap map_residual,
    const float* __restrict__ x_scales, const float* __restrict__ w_scales, const TBIAS* __restrict__ bias,
    const TRESIDUAL* __restrict__ residual, float* __restrict__ y_scales, const u32 rows, const u32 columns,
    const u32 depth, const u32 x_group
#if HEAD
    , const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v,
    TY* __restrict__ q, TY* __restrict__ k, TY* __restrict__ v,
    const TN* __restrict__ q_g, const TN* __restrict__ q_b, const TN* __restrict__ k_g, const TN* __restrict__ k_b,
    const float* __restrict__ all_turns, const Heads heads
#endif
)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 ring = shared_address(shared), panels = ring + STAGES * SLICE;
    const u32 of_columns = panels + GROUPS * BUFFERS * PANEL, affine = of_columns + COLUMN_COPIES * COLUMN_BYTES;
    const u32 full = affine + AFFINE * 4;
    const u32 empty = full + 8 * STAGES, staged = empty + 8 * STAGES, columns_full = staged + 8 * GROUPS;
    const u32 columns_empty = columns_full + 8 * COLUMN_COPIES;
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        tensor_map_prefetch(&map_a);
        tensor_map_prefetch(&map_b);
        tensor_map_prefetch(&map_y);
        ring_init(full, empty, STAGES, OWNERS);
        for (u32 i = 0; i < GROUPS; i++) barrier_init(staged + 8 * i, 1);
        ring_init(columns_full, columns_empty, COLUMN_COPIES, OWNERS);
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
        if (COLUMN_BYTES && warp == 4 * GROUPS + 1 && elect_one()) {
            u32 copy = 0, phase = 0;
            for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                u32 m, n;
                raster.at(tile, m, n);
                const u32 first = n * TILE_N, count = min(TILE_N, columns - first);
                const u32 to = of_columns + copy * COLUMN_BYTES, arrived = columns_full + 8 * copy;
                barrier_wait(columns_empty + 8 * copy, phase ^ 1);
                barrier_expect(arrived, count * (COLUMN_BYTES / TILE_N));
                if (WSCALE == ROW) copy_bytes(to, w_scales + first, arrived, count * 4);
                if (BIAS) copy_bytes(to + BYTES_W, bias + first, arrived, count * sizeof(TBIAS));
                if (++copy == COLUMN_COPIES) copy = 0, phase ^= 1;
            }
        }
        return;
    }
#if PRODUCER
    registers_raise<CONSUMER>();
#endif
#if HEAD
    const Parts parts{{&map_y, &map_k, &map_v}, {q, k, v}};
    const float* own_affine = (const float*)(shared + (affine - ring));
#if NORM
    for (u32 i = threadIdx.x; i < HEAD; i += GROUPS * 128) {
        float2* to = (float2*)(shared + (affine - ring)) + i;
        to[0] = {load(q_g + i), load(q_b + i)}, to[HEAD] = {load(k_g + i), load(k_b + i)};
    }
    named_sync(AFFINE_COME, GROUPS * 128);
#endif
#endif
    auto release = [&](u32 stage) {
        if (lane == 0) barrier_arrive(empty + 8 * stage);
    };
    // A warpgroup writes its panels in turn; one of its threads issues the copies.
    const bool issues = threadIdx.x % 128 == 0;
    const u32 own_panels = panels + group * BUFFERS * PANEL;
    u32 turn = 0, stage = 0, phase = 0, epilogue_phase = 0;
    const u32 copy = ALTERNATE ? group : 0;
    auto skip = [&](u32 count) {
        stage += count;
        phase ^= stage / STAGES & 1;
        stage %= STAGES;
    };
    // Whose slices come next in the ring: a warpgroup that waited for its own while the other's are still to come would
    // take theirs, since a barrier tells only odd phases from even ones.
    const u32 TURN = 1 + GROUPS;
    if (ALTERNATE && group == 1) {
        skip(slices);
        named_arrive(TURN, 256);
    }
    const u32 apart = ALTERNATE ? 2 * gridDim.x : gridDim.x;
    for (u32 tile = blockIdx.x + (ALTERNATE ? group * gridDim.x : 0); tile < tiles; tile += apart) {
        u32 m, n;
        raster.at(tile, m, n);
        const u32 first_row = m * TILE_M + (ALTERNATE ? 0 : group * 64);
        if (STAGED && issues) {
            const u32 used = min(PANELS, (columns - n * TILE_N + PANEL_COLUMNS - 1) / PANEL_COLUMNS);
            writes_wait_read<0>();
            barrier_expect(staged + 8 * group, PARTS * used * PANEL);
            for (u32 part = 0; part < PARTS; part++)
                for (u32 p = 0; p < used; p++)
                    copy_box(own_panels + (part * PANELS + p) * PANEL, &map_residual, staged + 8 * group,
                        n * TILE_N + p * PANEL_COLUMNS, first_row + part * 64, KEEP_NORMAL);
        }
        float scale[PARTS][2];
#pragma unroll
        for (u32 i = 0; i < PARTS * 2; i++) {
            const u32 row = first_row + i / 2 * 64 + i % 2 * 8 + warp % 4 * 16 + lane / 4;
            scale[i / 2][i % 2] = 1.f;
            if (XSCALE == ROW && row < rows) scale[i / 2][i % 2] = x_scales[row];
        }
#if HEAD
        Turns turns[PARTS][2];
        if (HALF_TURN && n * TILE_N < 2 * heads.heads * HEAD)
#pragma unroll
            for (u32 i = 0; i < PARTS * 2; i++)
                load_turns(turns[i / 2][i % 2], all_turns,
                    first_row + i / 2 * 64 + i % 2 * 8 + warp % 4 * 16 + lane / 4, rows, heads);
#endif
        float sums[PARTS][TILE_N / 2];
#if XSCALE == COLUMNS
        float scaled[PARTS][TILE_N / 2];
#pragma unroll
        for (u32 i = 0; i < TILE_N / 2; i++) scaled[0][i] = 0.f;
        const u32 slices_a_group = x_group / DEPTH, groups = (depth + x_group - 1) / x_group;
        u32 of_group = 0, scale_at = 0;
#endif
        if (ALTERNATE) named_sync(TURN + group, 256);
        for (u32 slice = 0; slice < slices; slice++) {
            barrier_wait(full + 8 * stage, phase);
            const u64 a = operand_k128(ring + stage * SLICE + (ALTERNATE ? 0 : group * PANEL));
            const u64 b = operand_k128(ring + stage * SLICE + BYTES_A);
#if XSCALE == COLUMNS
            const bool fresh = of_group == 0;
#else
            const bool fresh = slice == 0;
#endif
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) pin(sums[part]);
            products_fence();
#pragma unroll
            for (u32 step = 0; step < 4; step++)
#pragma unroll
                for (u32 part = 0; part < PARTS; part++)
                    Step<MATH>::add(
                        sums[part], a + part * (PANEL / 16) + step * 2, b + step * 2, step != 0 || !fresh);
            products_commit();
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) pin(sums[part]);
#if XSCALE == COLUMNS
            const u32 row = first_row + warp % 4 * 16 + lane / 4;
            const bool ends = ++of_group == slices_a_group || slice + 1 == slices;
            float top = 0.f, bottom = 0.f;
            if (ends) {
                if (row < rows) top = x_scales[(i64)row * groups + scale_at];
                if (row + 8 < rows) bottom = x_scales[(i64)(row + 8) * groups + scale_at];
            }
            products_wait<0>();
            pin(sums[0]);
            release(stage);
            if (ends) {
#pragma unroll
                for (u32 i = 0; i < TILE_N / 2; i++)
                    scaled[0][i] = fmaf(sums[0][i], i % 4 < 2 ? top : bottom, scaled[0][i]);
                of_group = 0;
                scale_at++;
            }
#else
            // One slice stays in flight; the one before is free.
            products_wait<1>();
            if (slice > 0) release(stage == 0 ? STAGES - 1 : stage - 1);
#endif
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        if (ALTERNATE) named_arrive(TURN + 1 - group, 256);
#if XSCALE == COLUMNS
        float(&result)[PARTS][TILE_N / 2] = scaled;
#else
        products_wait<0>();
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) pin(sums[part]);
        release(stage == 0 ? STAGES - 1 : stage - 1);
        float(&result)[PARTS][TILE_N / 2] = sums;
#endif
        if (ALTERNATE) skip(slices);
        float all = XSCALE == TENSOR ? x_scales[0] : 1.f;
        if (WSCALE == TENSOR) all *= w_scales[0];
        if (STAGED) barrier_wait(staged + 8 * group, epilogue_phase);
        if (COLUMN_BYTES) barrier_wait(columns_full + 8 * copy, epilogue_phase);
        epilogue_phase ^= 1;
        const u8* own_columns = shared + (of_columns - ring) + copy * COLUMN_BYTES;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            const u32 row = first_row + part * 64 + warp % 4 * 16 + lane / 4;
#if HEAD
            const u32 image = (first_row + part * 64) / heads.tokens;
#endif
            float2 extra[PANEL_COLUMNS / 8][2];
            if (!STAGED) load_residual(extra, residual, row, n * TILE_N, rows, columns);
#pragma unroll
            for (u32 p = 0; p < PANELS; p++) {
                const u32 first = n * TILE_N + p * PANEL_COLUMNS;
                if (first < columns) {
                    if (STAGED) read_panel(extra, own_panels + (part * PANELS + p) * PANEL);
#pragma unroll
                    for (u32 j = 0; j < PANEL_COLUMNS / 8; j++) {
                        const u32 column = p * PANEL_COLUMNS + j * 8 + lane % 4 * 2;
                        float2 w = {1.f, 1.f}, plus = {0.f, 0.f};
                        if (WSCALE == ROW) w = load_pair((const float*)own_columns + column);
                        if (BIAS) plus = load_pair((const TBIAS*)(own_columns + BYTES_W) + column);
#pragma unroll
                        for (u32 half = 0; half < 2; half++) {
                            float* pair = result[part] + (p * (PANEL_COLUMNS / 8) + j) * 4 + half * 2;
                            pair[0] = ACTIVATION(fmaf(pair[0] * (scale[part][half] * all), w.x, plus.x));
                            pair[1] = ACTIVATION(fmaf(pair[1] * (scale[part][half] * all), w.y, plus.y));
                            if (RESIDUAL) pair[0] += extra[j][half].x, pair[1] += extra[j][half].y;
                        }
                    }
                }
                // What comes next is on its way while this panel is written.
                if (!STAGED && p + 1 < PANELS)
                    load_residual(extra, residual, row, first + PANEL_COLUMNS, rows, columns);
#if QUANTIZE
                // Groups of columns end with a panel; then all their panels are written.
                if ((p + 1) * PANEL_COLUMNS % QUANTIZE != 0) continue;
                const u32 begin = p + 1 - QUANTIZE / PANEL_COLUMNS;
                if (n * TILE_N + begin * PANEL_COLUMNS >= columns) continue;
                to_codes(result[part] + begin * (PANEL_COLUMNS / 2), y_scales, row, rows,
                    (n * TILE_N + begin * PANEL_COLUMNS) / QUANTIZE, (columns + QUANTIZE - 1) / QUANTIZE);
#elif HEAD
                // Heads end with a panel; then their panels are written.
                if ((p + 1) * PANEL_COLUMNS % HEAD != 0) continue;
                const u32 begin = p + 1 - HEAD / PANEL_COLUMNS;
                const u32 head = (n * TILE_N + begin * PANEL_COLUMNS) / HEAD;
                if (head < 2 * heads.heads) {
                    float* own = result[part] + begin * (PANEL_COLUMNS / 2);
                    if (NORM) normalise_head(own, own_affine + (head < heads.heads ? 0 : 2 * HEAD), heads.eps);
                    turn_head(own, turns[part]);
                }
#else
                const u32 begin = p;
#endif
#pragma unroll
                for (u32 q = begin; q <= p; q++) {
                    const u32 column = n * TILE_N + q * PANEL_COLUMNS;
                    if (column >= columns) continue;
                    const u32 panel = own_panels + (STAGED ? part * PANELS + q : turn) * PANEL;
                    if (!STAGED) {
                        if (issues) writes_wait_read<BUFFERS - 1>();
                        named_sync(1 + group, 128);
                    }
                    write_panel(panel, result[part] + q * (PANEL_COLUMNS / 2));
                    fence_shared_for_async();
                    named_sync(1 + group, 128);
                    if (issues) {
#if HEAD
                        write_tokens(parts, panel, column, first_row + part * 64, image, heads);
#else
                        write_box(&map_y, panel, column, first_row + part * 64);
#endif
                        writes_commit();
                    }
#if HEAD
                    write_other_images(
                        parts, shared + (panel - ring), column, first_row + part * 64, rows, image, heads);
#endif
                    if (++turn == BUFFERS) turn = 0;
                }
            }
        }
        __syncwarp();
        if (COLUMN_BYTES && lane == 0) barrier_arrive(columns_empty + 8 * copy);
    }
    if (issues) writes_wait<0>();
}
