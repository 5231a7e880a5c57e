// dw = g * columns of x on Hopper's tensor cores: images x [N, H, W, C] and cotangents g [N, OH, OW, O] of 16-bit
// elements, dw [O, kh, kw, C]; stride one, one group, windows of 3x3 or of one pixel.
//
// A slice of the sums is a box of x, 8 columns wide, under 8 rows of g. Shifts between both are shared out: a column kx of
// taps reads the columns of g that stand kx further left, in a box of its own, and a row ky of taps reads the rows of x
// that stand ky further down, in the one box of x, two rows taller. A row of a box is 8 pixels, a whole period of the
// swizzle, so that rows of taps are panels of one product that start a row apart. What lies outside of an image is zero
// on either side, so that boxes need not fit.
//
// Of the warpgroups that multiply, each has a column of taps, or, of pointwise convolutions, 64 outputs; all have all
// channels of the tile. Products take 64 outputs at least. Up to 32 are PAIRED: a row of g beside the row below it, in
// steps of two rows. With four panels of x, the first has the rows of taps 0, 1, 2 and the second 1, 2, 3; they are added
// up as parts.
//
// A block computes a tile over a part of the slices; parts lie one after the other, [parts, O, kh, kw, C].
//
// Macros: TX the elements of x and g, bf16_t or half_t; TY of the sums, float or TX; KERNEL 3 or 1; PAIRED; CHANNELS of a
// panel, 64 or 32, which PAIRED goes with; PANELS of x, 1 with KERNEL 3; GROUPS that multiply, 3 with KERNEL 3; STAGES of
// the ring.
#include "pairs.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 THREADS = 128 * (GROUPS + 1), SIDE = 8, OUTPUTS = PAIRED ? 32 : 64;
// Bytes of a row of a box, of a box, of a slice.
const u32 ROW_G = SIDE * OUTPUTS * 2, ROW_X = SIDE * CHANNELS * 2;
const u32 BOX_G = SIDE * ROW_G, BOX_X = (SIDE + KERNEL - 1) * ROW_X, SLICE = GROUPS * BOX_G + PANELS * BOX_X;
// Panels of a product, and bytes from one to the next.
const u32 BESIDE = KERNEL == 3 ? 3 + PAIRED : PANELS, NEXT_PANEL = KERNEL == 3 ? ROW_X : BOX_X;
// Rows of boxes from 8 pixels of a product to the next 8; a product takes 16.
const u32 APART = 1 + PAIRED, STEPS = SIDE / (2 * APART);
static_assert(KERNEL == 1 ? !PAIRED : GROUPS == 3 && PANELS == 1, "a warpgroup a column of taps, a panel a row of taps");
static_assert(!PAIRED || CHANNELS == 32, "sums fit into registers");

struct Sums {
    // Tiles along the outputs, and all; parts of a sum, slices of all images.
    u32 along, tiles, parts, slices;
    // Boxes along a row of an image, and down.
    u32 across, down;
    u32 pad_y, pad_x;
    u32 outputs, channels;
};

DEVICE u64 operand_g(u32 at) {
    return PAIRED ? operand_mn64(at, ROW_G, 2 * ROW_G) : operand_mn128(at, BOX_G, ROW_G);
}
DEVICE u64 operand_x(u32 at) {
    return CHANNELS == 32 ? operand_mn64(at, NEXT_PANEL, APART * ROW_X) : operand_mn128(at, NEXT_PANEL, ROW_X);
}

DEVICE void store_two(float* to, float a, float b) { *(float2*)to = {a, b}; }
template <class T> DEVICE void store_two(T* to, float a, float b) { *(u32*)to = Pair<T>::of(a, b); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_weight_grad_wgmma(
    const __grid_constant__ TensorMap map_x, const __grid_constant__ TensorMap map_g, TY* __restrict__ y, const Sums s)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 ring = shared_address(shared), full = ring + STAGES * SLICE, empty = full + 8 * STAGES;
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        tensor_map_prefetch(&map_x);
        tensor_map_prefetch(&map_g);
        ring_init(full, empty, STAGES, 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 tile = blockIdx.x % s.tiles, part = blockIdx.x / s.tiles;
    const u32 first_output = tile % s.along * (KERNEL == 3 ? OUTPUTS : GROUPS * OUTPUTS);
    const u32 first_channel = tile / s.along * (PANELS * CHANNELS);
    const u32 first = (u64)s.slices * part / s.parts, last = (u64)s.slices * (part + 1) / s.parts;

    if (group == GROUPS) {
        if (warp == 4 * GROUPS && elect_one()) {
            u32 stage = 0, phase = 0;
            u32 box = first % s.across, row = first / s.across % s.down, image = first / s.across / s.down;
            for (u32 slice = first; slice < last; slice++) {
                const u32 to = ring + stage * SLICE, done = full + 8 * stage;
                const i32 column = box * SIDE, line = row * SIDE;
                barrier_wait(empty + 8 * stage, phase ^ 1);
                barrier_expect(done, SLICE);
#pragma unroll
                for (u32 i = 0; i < GROUPS; i++)
                    copy_box(to + i * BOX_G, &map_g, done, first_output + (KERNEL == 3 ? 0 : i * OUTPUTS),
                        column + (i32)s.pad_x - (KERNEL == 3 ? (i32)i : 0), line, image, KEEP_NORMAL);
#pragma unroll
                for (u32 i = 0; i < PANELS; i++)
                    copy_box(to + GROUPS * BOX_G + i * BOX_X, &map_x, done, first_channel + i * CHANNELS, column,
                        line - (i32)s.pad_y, image, KEEP_NORMAL);
                if (++box == s.across) {
                    box = 0;
                    if (++row == s.down) row = 0, image++;
                }
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }
    float sums[BESIDE * CHANNELS / 2];
    u32 stage = 0, phase = 0;
    for (u32 slice = first; slice < last; slice++) {
        barrier_wait(full + 8 * stage, phase);
        const u32 from = ring + stage * SLICE;
        const u64 a = operand_g(from + group * BOX_G), b = operand_x(from + GROUPS * BOX_G);
        pin(sums);
        products_fence();
#pragma unroll
        for (u32 step = 0; step < STEPS; step++)
            Step<TX>::add<1, 1>(sums, a + step * (2 * APART * ROW_G / 16), b + step * (2 * APART * ROW_X / 16),
                step != 0 || slice != first);
        products_commit();
        pin(sums);
        // One slice stays in flight; the one before is free.
        products_wait<1>();
        if (slice != first && lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    products_wait<0>();
    pin(sums);

    // Of a pair, warps of the second half have sums of rows of g that are one further down.
    const u32 lower = PAIRED ? warp % 4 / 2 : 0;
    const u32 output = first_output + (KERNEL == 3 ? 0 : group * OUTPUTS) + warp % (OUTPUTS / 16) * 16 + lane / 4;
    TY* const to = y + (i64)(PAIRED ? part * 2 + lower : part) * s.outputs * (KERNEL * KERNEL) * s.channels;
#pragma unroll
    for (u32 i = 0; i < BESIDE; i++) {
        // A row of taps, or channels; beyond the last row where it is -1 or 3.
        const u32 ky = i - lower;
        if (KERNEL == 3 && ky >= 3) continue;
        const u32 tap = KERNEL == 3 ? ky * 3 + group : 0, channels = first_channel + (KERNEL == 3 ? 0 : i * CHANNELS);
#pragma unroll
        for (u32 j = 0; j < CHANNELS / 8; j++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 own = output + half * 8, channel = channels + j * 8 + lane % 4 * 2;
                const float* d = sums + (i * CHANNELS / 8 + j) * 4 + half * 2;
                if (own < s.outputs && channel < s.channels)
                    store_two(to + ((i64)own * (KERNEL * KERNEL) + tap) * s.channels + channel, d[0], d[1]);
            }
    }
}
