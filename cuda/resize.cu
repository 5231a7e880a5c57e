// Images at another resolution: y[p, i, j] = act(sum over taps of x[p, rows[i], columns[j]] with their weights +
// addends). A first kernel makes the taps of both axes by the operation's law, in f64; a second one gathers, in f32.
//
// Macros: TX the operand's elements, TR the result's; ROWS and COLUMNS taps an axis; PIXELS 1 where channels lie side
// by side; ADDENDS how many operands are added, TA and TB their elements; ACTIVATION a function of activations.cuh;
// INDEX u32 or u64.
#include "activations.cuh"
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

// Elements from one image, row, column, channel of an addend to the next; 0 where it is stretched.
struct Steps { i64 image, row, column, channel; };
struct Sizes { i64 channels, height, width, result_height, result_width, elements; };

extern "C" __global__ void __launch_bounds__(256) resize(
    const TX* __restrict__ x, const TA* __restrict__ a, const TB* __restrict__ b, TR* __restrict__ y,
    const Tap* __restrict__ rows, const Tap* __restrict__ columns, const Sizes s, const Steps of_a, const Steps of_b)
{
    wait_for_launch_before();
    const INDEX h = (INDEX)s.result_height, w = (INDEX)s.result_width, channels = (INDEX)s.channels;
    const i64 pitch = PIXELS ? s.channels : 1;
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)s.elements; at += (INDEX)gridDim.x * 256u) {
        const INDEX pixel = PIXELS ? at / channels : at, line = pixel / w, j = pixel - line * w;
        const INDEX plane = line / h, i = line - plane * h;
        const INDEX image = PIXELS ? plane : plane / channels;
        const INDEX channel = PIXELS ? at - pixel * channels : plane % channels;
        const TX* from = x + (i64)plane * s.height * s.width * pitch + (PIXELS ? channel : 0);
        float sum = 0.f;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Tap row = rows[(i64)i * ROWS + r];
            if (row.weight == 0.f) continue;
            float blend = 0.f;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const Tap column = columns[(i64)j * COLUMNS + c];
                // A tap without weight may lie on a pixel that is not finite.
                if (column.weight != 0.f)
                    blend += load(from + (row.source * s.width + column.source) * pitch) * column.weight;
            }
            sum += blend * row.weight;
        }
        auto place = [&](const Steps& of) {
            return image * of.image + i * of.row + j * of.column + channel * of.channel;
        };
        if (ADDENDS > 0) sum += load(a + place(of_a));
        if (ADDENDS > 1) sum += load(b + place(of_b));
        store(y + at, ACTIVATION(sum));
    }
}
