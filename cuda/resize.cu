// Images at another resolution: y[p, i, j] = act(sum over taps of x[p, rows[i], columns[j]] with their weights +
// addends). A first kernel makes the taps of both axes by the operation's law, in f64; a second one gathers, in f32.
//
// Macros: TX the operand's elements, TR the result's; ROWS and COLUMNS taps an axis; PIXELS 1 where channels lie side
// by side; ADDENDS how many operands are added, TA and TB their elements; ACTIVATION a function of activations.cuh;
// INDEX u32 or u64.
#include "activations.cuh"

enum Mode { NEAREST, LINEAR, CUBIC };
enum Coordinates { HALF_PIXEL, ALIGN_CORNERS, ASYMMETRIC, PYTORCH_HALF_PIXEL };
enum Rounding { FLOOR, CEIL, ROUND_PREFER_FLOOR, ROUND_PREFER_CEIL };

struct Law { i32 mode, coordinates, rounding, antialias, exclude_outside, unused; double cubic_a; };
struct AxisLaw { i64 from, to; double scale; };
struct Tap { u32 source; float weight; };

DEVICE double kernel_weight(const Law& law, double x) {
    const double a = law.cubic_a;
    x = fabs(x);
    if (law.mode != CUBIC) return x < 1. ? 1. - x : 0.;
    if (x < 1.) return ((a + 2.) * x - (a + 3.)) * x * x + 1.;
    if (x < 2.) return (((x - 5.) * x + 8.) * x - 4.) * a;
    return 0.;
}

DEVICE double coordinate(const Law& law, const AxisLaw& axis, i64 i) {
    if (law.coordinates == ASYMMETRIC) return i / axis.scale;
    if (axis.to == 1 && law.coordinates != HALF_PIXEL) return 0.;
    if (law.coordinates == ALIGN_CORNERS) return i * (axis.from - 1.) / (axis.to - 1.);
    return (i + 0.5) / axis.scale - 0.5;
}

// The taps of result pixel i, filled up with weights of zero.
template <int COUNT> DEVICE void make_taps(const Law& law, const AxisLaw& axis, i64 i, Tap* taps) {
    const double at = coordinate(law, axis, i);
    const i64 end = axis.from - 1;
    if (law.mode == NEAREST) {
        const double nearest = law.rounding == FLOOR ? floor(at)
            : law.rounding == CEIL                   ? ceil(at)
            : law.rounding == ROUND_PREFER_FLOOR     ? ceil(at - 0.5)
                                                     : floor(at + 0.5);
        const i64 source = (i64)nearest;
        taps[0] = Tap{(u32)(source < 0 ? 0 : source > end ? end : source), 1.f};
        return;
    }
    const double stretch = law.antialias && axis.scale < 1. ? axis.scale : 1.;
    const double radius = (law.mode == LINEAR ? 1. : 2.) / stretch;
    const i64 first = (i64)floor(at - radius) + 1, last = (i64)ceil(at + radius) - 1;
    double sum = 0.;
    for (i64 j = first; j <= last; j++) {
        if (!law.exclude_outside || (j >= 0 && j <= end)) sum += kernel_weight(law, (j - at) * stretch);
    }
    for (int k = 0; k < COUNT; k++) {
        const i64 j = first + k;
        const bool counts = j <= last && (!law.exclude_outside || (j >= 0 && j <= end));
        const double weight = counts ? kernel_weight(law, (j - at) * stretch) / sum : 0.;
        taps[k] = Tap{(u32)(j < 0 ? 0 : j > end ? end : j), (float)weight};
    }
}

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
