// y = EXPR(a, b, ...) under broadcasting, computed in f32 or i64 and rounded once.
//
// Macros: ARITY 1..6; T0, T1, ... the operands' elements, TR the result's; INDEX u32 or u64; EXPR over a to f; FLAT 1
// where no operand is broadcast and positions are offsets; VECTOR results a thread, neighbours along the innermost
// dimension, along which every operand is contiguous or constant if VECTOR is above 1.
#include "activations.cuh"
#include "strides.cuh"

#if ARITY < 2
#define T1 T0
#endif
#if ARITY < 3
#define T2 T0
#endif
#if ARITY < 4
#define T3 T0
#endif
#if ARITY < 5
#define T4 T0
#endif
#if ARITY < 6
#define T5 T0
#endif

DEVICE float sign(float x) { return x == 0.f ? 0.f : x != x ? x : copysignf(1.f, x); }
DEVICE i64 sign(i64 x) { return (x > 0) - (x < 0); }
DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
DEVICE float maximum(float a, float b) { return a != a || b != b ? a + b : fmaxf(a, b); }
DEVICE float minimum(float a, float b) { return a != a || b != b ? a + b : fminf(a, b); }
DEVICE i64 maximum(i64 a, i64 b) { return a > b ? a : b; }
DEVICE i64 minimum(i64 a, i64 b) { return a < b ? a : b; }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE i64 absolute(i64 x) { return x < 0 ? -x : x; }

// Towards zero, saturating; a NaN as zero.
DEVICE i64 truncated(float x, i64 low, i64 high) {
    const i64 whole = x != x ? 0 : (i64)x;
    return whole < low ? low : whole > high ? high : whole;
}
// Where the law knows no result (division by zero, negative exponents), integers give 0.
DEVICE i64 quotient(i64 a, i64 b) { return b == 0 ? 0 : b == -1 ? (i64)(0 - (u64)a) : a / b; }
DEVICE i64 power(i64 a, i64 b) {
    u64 result = b < 0 ? 0 : 1;
    for (u64 square = a; b > 0; b >>= 1, square *= square)
        if (b & 1) result *= square;
    return (i64)result;
}
DEVICE i64 remainder(i64 a, i64 b) {
    if (b == 0 || b == -1) return 0;
    const i64 rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
// The sign of b, with a subtraction that is exact.
DEVICE float remainder(float a, float b) {
    if (isinf(b)) return a - b * floorf(a / b);
    const float rest = fmodf(a, b);
    return rest != 0.f && (rest < 0.f) != (b < 0.f) ? rest + b : rest;
}

// Neighbours that are loaded and stored at once.
template <class T> struct alignas(sizeof(T) * VECTOR < 16 ? sizeof(T) * VECTOR : 16) Group { T of[VECTOR]; };

// The values for VECTOR results: as many neighbours, or one for all.
template <class T> DEVICE void read(typename compute<T>::type* values, const T* from, bool neighbours) {
    if (VECTOR > 1 && neighbours) {
        const Group<T> group = *reinterpret_cast<const Group<T>*>(from);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = widen(group.of[i]);
    } else {
        const typename compute<T>::type value = load(from);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = value;
    }
}

// How each operand moves.
struct Operands { Strides of[ARITY]; };

// `n` and `shape` count groups; bit i of `neighbours` says whether operand i advances within a group.
extern "C" __global__ void __launch_bounds__(256) elementwise(
    const T0* __restrict__ x0, const T1* __restrict__ x1, const T2* __restrict__ x2, const T3* __restrict__ x3,
    const T4* __restrict__ x4, const T5* __restrict__ x5, TR* __restrict__ y, const Shape shape,
    const Operands operands, const i32 neighbours, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const i64 flat = (i64)at * VECTOR;
        compute<T0>::type as[VECTOR];
        compute<T1>::type bs[VECTOR] = {};
        compute<T2>::type cs[VECTOR] = {};
        compute<T3>::type ds[VECTOR] = {};
        compute<T4>::type es[VECTOR] = {};
        compute<T5>::type fs[VECTOR] = {};
#define READ(i, values, x) \
    if (ARITY > i) \
        read(values, x + (FLAT ? flat : offset(at, shape, operands.of[i < ARITY ? i : 0])), FLAT || neighbours >> i & 1)
        READ(0, as, x0);
        READ(1, bs, x1);
        READ(2, cs, x2);
        READ(3, ds, x3);
        READ(4, es, x4);
        READ(5, fs, x5);
        Group<TR> results;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const auto a = as[i];
            const auto b = bs[i];
            const auto c = cs[i];
            const auto d = ds[i];
            const auto e = es[i];
            const auto f = fs[i];
            (void)b, (void)c, (void)d, (void)e, (void)f;
            narrow(results.of[i], to_compute<compute<TR>::type>::of(EXPR));
        }
        *reinterpret_cast<Group<TR>*>(y + flat) = results;
    }
}
