// Element types and their conversions, without any other header: NVRTC sees the files of this folder alone.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__

// Launches overlap where the device can (Hopper): a kernel reads and writes nothing before it has waited for the launch
// in front; the next one may start by then, and waits in its turn. The first statement of every kernel, or the first
// behind what it does in shared memory alone.
DEVICE void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct half_t { u16 bits; };
struct bf16_t { u16 bits; };
struct e4m3_t { u8 bits; };
struct e5m2_t { u8 bits; };
struct bool_t { u8 bits; };

// What elements are computed in: f32 for every floating-point type, i64 for every integer.
template <class T> struct compute { typedef float type; };
template <> struct compute<double> { typedef double type; };
template <> struct compute<i64> { typedef i64 type; };
template <> struct compute<i32> { typedef i64 type; };
template <> struct compute<u8> { typedef i64 type; };
template <> struct compute<bool_t> { typedef i64 type; };

// `widen` is exact.
DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(half_t x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
DEVICE float widen(bf16_t x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE u32 half2_of_fp8(u16 pair, bool e5m2) {
    u32 halves;
    if (e5m2) asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
    else asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    return halves;
}
#if __CUDA_ARCH__ >= 890
DEVICE float widen(e4m3_t x) { return widen(half_t{(u16)half2_of_fp8(x.bits, false)}); }
DEVICE float widen(e5m2_t x) { return widen(half_t{(u16)half2_of_fp8(x.bits, true)}); }
#else
// Ampere has no conversion: e5m2 is the upper half of an f16; e4m3 is an f16 with another bias, subnormals included.
DEVICE float widen(e5m2_t x) { return widen(half_t{(u16)(x.bits << 8)}); }
DEVICE float widen(e4m3_t x) {
    if ((x.bits & 0x7f) == 0x7f) return __uint_as_float(0x7fc00000);
    return widen(half_t{(u16)((x.bits & 0x80) << 8 | (x.bits & 0x7f) << 7)}) * 256.f;
}
#endif
DEVICE i64 widen(i64 x) { return x; }
DEVICE i64 widen(i32 x) { return x; }
DEVICE i64 widen(u8 x) { return x; }
DEVICE i64 widen(bool_t x) { return x.bits != 0; }

// `narrow` rounds to nearest, ties to even; FP8 saturates. Integers wrap; floats truncate towards zero.
DEVICE void narrow(float& y, float x) { y = x; }
DEVICE void narrow(half_t& y, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
DEVICE void narrow(bf16_t& y, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#if __CUDA_ARCH__ >= 890
DEVICE void narrow(e4m3_t& y, float x) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.f), "f"(x));
    y.bits = (u8)pair;
}
DEVICE void narrow(e5m2_t& y, float x) {
    u16 pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.f), "f"(x));
    y.bits = (u8)pair;
}
#else
// Ampere has no conversion: the mantissa rounded to three bits, or multiples of 2^-9 below 2^-6.
DEVICE void narrow(e4m3_t& y, float x) {
    const u32 bits = __float_as_uint(x), magnitude = bits & 0x7fffffff;
    const float a = __uint_as_float(magnitude);
    u32 code;
    if (a != a) code = 0x7f;
    else if (a > 448.f) code = 0x7e;
    else if (a < 0.015625f) code = (u32)rintf(a * 512.f);
    else code = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - (120 << 3);
    y.bits = (u8)(bits >> 24 & 0x80 | code);
}
#endif
DEVICE void narrow(i64& y, i64 x) { y = x; }
DEVICE void narrow(i32& y, i64 x) { y = (i32)x; }
DEVICE void narrow(u8& y, i64 x) { y = (u8)x; }
DEVICE void narrow(bool_t& y, i64 x) { y.bits = x != 0; }

// Between kinds: `to_compute<C>` of what `widen` gave.
template <class C> struct to_compute;
template <> struct to_compute<float> {
    static __device__ __forceinline__ float of(float x) { return x; }
    static __device__ __forceinline__ float of(i64 x) { return (float)x; }
};
template <> struct to_compute<i64> {
    static __device__ __forceinline__ i64 of(float x) { return (i64)x; }
    static __device__ __forceinline__ i64 of(i64 x) { return x; }
};

template <class T> DEVICE typename compute<T>::type load(const T* p) { return widen(*p); }
template <class T> DEVICE void store(T* p, typename compute<T>::type x) { narrow(*p, x); }

// Reductions over groups of SPAN neighbouring lanes, a power of two; every lane gets the result of its group. Whole
// warps take part.
template <int SPAN> DEVICE float lanes_sum(float x) {
#pragma unroll
    for (int step = SPAN / 2; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
template <int SPAN> DEVICE float lanes_max(float x) {
#pragma unroll
    for (int step = SPAN / 2; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}
DEVICE float warp_sum(float x) { return lanes_sum<32>(x); }
DEVICE float warp_max(float x) { return lanes_max<32>(x); }
