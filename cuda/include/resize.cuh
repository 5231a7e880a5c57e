// The operation `resize`: which pixels of x a pixel of the result sees, with which weights, in f64.
#pragma once
#include "types.cuh"

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
