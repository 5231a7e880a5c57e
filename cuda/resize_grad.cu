// What images get back through `resize`: dx[p, i, j] = sum of g[p, r, c] over the pixels [r, c] of the result that see
// pixel [i, j], with their weights. A first kernel makes the taps of the resize, a second one lists for every row and
// column of dx who sees it, in order; a third one gathers, in f32.
//
// Macros: TX the elements of g and dx; ROWS and COLUMNS taps of the resize an axis; PIXELS 1 where channels lie side by
// side; CHUNK the channels of a thread, 1 for planes; INDEX u32 or u64.
#include "resize.cuh"

extern "C" __global__ void __launch_bounds__(256) taps(
    Tap* __restrict__ rows, Tap* __restrict__ columns, const Law law, const AxisLaw down, const AxisLaw across)
{
    wait_for_launch_before();
    for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < down.to + across.to; i += gridDim.x * 256ll) {
        if (i < down.to) make_taps<ROWS>(law, down, i, rows + i * ROWS);
        else make_taps<COLUMNS>(law, across, i - down.to, columns + (i - down.to) * COLUMNS);
    }
}

// Who sees pixel i, up to `most`; the rest of the list has no weight.
template <int COUNT> DEVICE void make_list(const Tap* taps, i64 results, u32 i, u32 most, Tap* list) {
    u32 found = 0;
    for (i64 j = 0; j < results; j++) {
        // A border that is repeated is one pixel several times.
        float weight = 0.f;
        for (int k = 0; k < COUNT; k++) {
            const Tap tap = taps[j * COUNT + k];
            if (tap.source == i) weight += tap.weight;
        }
        if (weight != 0.f && found < most) list[found++] = Tap{(u32)j, weight};
    }
    for (; found < most; found++) list[found] = Tap{0, 0.f};
}

extern "C" __global__ void __launch_bounds__(256) lists(
    const Tap* __restrict__ rows, const Tap* __restrict__ columns, Tap* __restrict__ row_lists,
    Tap* __restrict__ column_lists, const AxisLaw down, const AxisLaw across, const u32 most_rows,
    const u32 most_columns)
{
    wait_for_launch_before();
    for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < down.from + across.from; i += gridDim.x * 256ll) {
        const i64 column = i - down.from;
        if (column < 0) make_list<ROWS>(rows, down.to, (u32)i, most_rows, row_lists + i * most_rows);
        else make_list<COLUMNS>(columns, across.to, (u32)column, most_columns, column_lists + column * most_columns);
    }
}

// Of dx: channels, then height and width of g and of dx.
struct Sizes { i64 channels, from_height, from_width, height, width, elements; };

// Sums of CHUNK channels that lie side by side.
DEVICE void take(float (&sums)[CHUNK], const TX* from, float weight) {
    struct alignas(CHUNK * sizeof(TX)) Chunk { TX of[CHUNK]; };
    const Chunk chunk = *reinterpret_cast<const Chunk*>(from);
#pragma unroll
    for (int k = 0; k < CHUNK; k++) sums[k] += load(&chunk.of[k]) * weight;
}

extern "C" __global__ void __launch_bounds__(256) resize_grad(
    const TX* __restrict__ g, TX* __restrict__ dx, const Tap* __restrict__ rows, const Tap* __restrict__ columns,
    const u32 most_rows, const u32 most_columns, const Sizes s)
{
    wait_for_launch_before();
    const INDEX h = (INDEX)s.height, w = (INDEX)s.width, chunks = (INDEX)(s.channels / CHUNK);
    const i64 pitch = PIXELS ? s.channels : 1;
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)s.elements / CHUNK; at += (INDEX)gridDim.x * 256u) {
        const INDEX pixel = PIXELS ? at / chunks : at, line = pixel / w, j = pixel - line * w;
        const INDEX plane = line / h, i = line - plane * h, channel = PIXELS ? (at - pixel * chunks) * CHUNK : 0;
        const TX* from = g + (i64)plane * s.from_height * s.from_width * pitch + channel;
        float sums[CHUNK];
#pragma unroll
        for (int k = 0; k < CHUNK; k++) sums[k] = 0.f;
        for (u32 r = 0; r < most_rows; r++) {
            const Tap row = rows[(i64)i * most_rows + r];
            if (row.weight == 0.f) break;
            float blends[CHUNK];
#pragma unroll
            for (int k = 0; k < CHUNK; k++) blends[k] = 0.f;
            for (u32 q = 0; q < most_columns; q++) {
                const Tap column = columns[(i64)j * most_columns + q];
                if (column.weight == 0.f) break;
                take(blends, from + (row.source * s.from_width + column.source) * pitch, column.weight);
            }
#pragma unroll
            for (int k = 0; k < CHUNK; k++) sums[k] += blends[k] * row.weight;
        }
#pragma unroll
        for (int k = 0; k < CHUNK; k++) store(dx + at * CHUNK + k, sums[k]);
    }
}
